"""Memory that has run out: what held it, and what would help."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from loongforge.config.errors import RunError
from loongforge.config.schema import Config
from loongforge.kernels.backend import Backend
from loongforge.parallel.layout import Layout
from loongforge.planning.relief import relief
from loongforge.training.run_setup import Setup

_MOST = 30
"""Tensors in the table."""
Named = Iterable[tuple[str, torch.Tensor]]


def explain(
    error: BaseException,
    config: Config,
    backend: Backend,
    *,
    layout: Layout,
    rank: int,
    run_dir: Path,
    setup: Setup | None,
) -> RunError:
    """Writes `oom/` of the run, and returns what to raise.

    Args:
        error: That memory has run out.
        config: The recipe.
        backend: Whose memory it is.
        layout: Of the run.
        rank: This one.
        run_dir: The run.
        setup: Model and optimizer; None where they were being made.
    """
    folder = run_dir / "oom"
    folder.mkdir(parents=True, exist_ok=True)
    snapshot, table = folder / f"rank_{rank}.pickle", folder / f"rank_{rank}.txt"
    kinds = _kinds(setup)
    written = backend.tools().snapshot_memory(snapshot)
    lines = [_where(setup, rank, backend), *_figures(backend, kinds), *_advice(config, layout, backend, setup)]
    lines.append(f"  torch said: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    lines.append(
        f"  largest tensors: {table}" + (f"; {snapshot} is for https://pytorch.org/memory_viz" if written else "")
    )
    message = "\n".join(lines)
    trace = "".join(traceback.format_exception(error))
    table.write_text("\n".join([message, "", *_table(kinds), "", trace]), encoding="utf-8")
    return RunError(message)


def _where(setup: Setup | None, rank: int, backend: Backend) -> str:
    if setup is None:
        when = "while model and optimizer were made"
    else:
        phase, step = setup.phases.failed_in, setup.progress.step + 1
        when = f"in step {step}, phase {phase}" if phase else f"after step {step - 1}, outside of a step's phases"
    return f"out of memory on rank {rank} ({backend.title}) {when}"


def _kinds(setup: Setup | None) -> dict[str, list[tuple[str, torch.Tensor]]]:
    """Tensors by kind, each storage once; the last kind is what Python sees of the rest."""
    seen: set[int] = set()
    if setup is None:
        return {"other": list(_new(_living(), seen))}
    named = {param: name for name, param in setup.model.named_parameters()}
    return {
        "parameters": list(_new(((name, param) for param, name in named.items()), seen)),
        "gradients": list(_new(_gradients(named), seen)),
        "optimizer states": list(_new(_states(setup), seen)),
        "activations and other": list(_new(_living(), seen)),
    }


def _new(tensors: Named, seen: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors:
        try:
            place = tensor.untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError):  # a tensor without memory of its own
            continue
        if place and place not in seen:
            seen.add(place)
            yield name, tensor


def _gradients(named: Mapping[torch.nn.Parameter, str]) -> Named:
    for param, name in named.items():
        for gradient in (getattr(param, "main_grad", None), param.grad):
            if gradient is not None:
                yield f"buffer with {name}", gradient


def _states(setup: Setup) -> Named:
    """Moments, and copies of parameters in a wider type."""
    for component, part in setup.optimizers.parts.items():
        for one in getattr(part.optimizer, "chained_optimizers", [part.optimizer]):
            inner = getattr(one, "optimizer", None)
            for group in getattr(inner, "param_groups", []):
                for param in group["params"]:
                    yield f"copy of parameters of {component}", param
                    for name, value in getattr(inner, "state", {}).get(param, {}).items():
                        if isinstance(value, torch.Tensor):
                            yield f"{name} of {component}", value


def _living() -> Named:
    """Tensors that Python holds; what only autograd holds is not among them."""
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):  # `isinstance` asks proxies, and those of what is gone raise
            yield "tensor", thing


def _bytes(tensors: Named) -> int:
    return sum(tensor.untyped_storage().nbytes() for _, tensor in tensors)


def _figures(backend: Backend, kinds: Mapping[str, list[tuple[str, torch.Tensor]]]) -> list[str]:
    """What the device says, and what its memory is used for."""
    memory = backend.memory()
    known = [f"{name} {_gib(memory[name])}" for name in ("total", "free", "allocated", "reserved") if name in memory]
    sizes = {kind: _bytes(tensors) for kind, tensors in kinds.items()}
    by_allocator = backend.capability("memory_stats").value == "yes" and "allocated" in memory
    if by_allocator:  # the rest of what the allocator gave out, also what only autograd holds
        last = list(sizes)[-1]
        sizes[last] = max(0, memory["allocated"] - sum(sizes.values()) + sizes[last])
    held = ", ".join(f"{kind} {_gib(size)}" for kind, size in sizes.items())
    found = [
        f"  memory: {', '.join(known)}",
        f"  held by: {held}" + ("" if by_allocator else " (of those that Python sees)"),
    ]
    if by_allocator and {"total", "free", "reserved"} <= memory.keys():
        others = memory["total"] - memory["free"] - memory["reserved"]
        found.append(f"  other processes, and what the driver keeps: {_gib(max(0, others))}")
    return found


def _advice(config: Config, layout: Layout, backend: Backend, setup: Setup | None) -> list[str]:
    reference = setup is not None and setup.kernels.names().get("linear_cross_entropy") == "reference"
    bf16 = backend.capability("bf16").value != "no"
    try:
        before, found = relief(config, layout, whole_logits=reference, bf16=bf16)
    except Exception as problem:  # a component of somebody's own may not say its sizes; the first error is what counts
        return [f"  the planner cannot tell what would help: {type(problem).__name__}: {problem}"]
    memory = backend.memory()
    spare = memory.get("reserved", 0) - memory.get("allocated", 0)
    lines = [f"  what helps, with what each alone is predicted to save of {_gib(before.total)} on the fullest rank:"]
    width = max((len(one.setting) for one in found), default=0)
    lines += [f"    {one.setting:<{width}}  {_gib(one.saved)}" for one in found]
    if spare > 0.2 * memory.get("total", 0) and backend.capability("expandable_segments").value == "yes":
        lines.append(f"    PYTORCH_ALLOC_CONF=expandable_segments:True  up to {_gib(spare)} in pieces")
    lines.append("    a lower data.max_length, or more devices" + ("" if found else "; nothing else is known to help"))
    return lines


def _table(kinds: Mapping[str, list[tuple[str, torch.Tensor]]]) -> list[str]:
    everything = [
        (tensor.untyped_storage().nbytes(), kind, name, tensor)
        for kind, named in kinds.items()
        for name, tensor in named
    ]
    everything.sort(key=lambda one: -one[0])
    lines = [f"{'MiB':>10}  {'kind':<22} {'type':<10} {'shape':<24} what"]
    for size, kind, name, tensor in everything[:_MOST]:
        dtype = str(tensor.dtype).removeprefix("torch.")
        lines.append(f"{size / 2**20:>10.2f}  {kind:<22} {dtype:<10} {tuple(tensor.shape)!s:<24} {name}")
    return lines


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.2f} MiB"
