"""What a rank does in the comparisons; imported by ranks, so megatron-core comes after the backend."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from loongforge.kernels.backend import select

BACKEND = select("auto")
BACKEND.activate()

from loongforge.checkpoint.hf_origin import FOLDER  # noqa: E402
from loongforge.checkpoint.sharded import write_state  # noqa: E402
from loongforge.config.schema import Config  # noqa: E402
from loongforge.inference.generation import Prompt, greedy  # noqa: E402
from loongforge.model.weights import model_state  # noqa: E402
from loongforge.parallel.groups import make_groups  # noqa: E402
from loongforge.parallel.layout import Layout  # noqa: E402
from loongforge.parallel.session import joined_world  # noqa: E402
from loongforge.training.verify.outcome import Outcome  # noqa: E402
from loongforge.training.verify.trial import Trial  # noqa: E402


@dataclass
class Ours:
    """What one rank found; by our global names."""

    logits: dict[str, np.ndarray] = field(default_factory=dict)
    """`[T, V]` by sample, on ranks that compute them."""
    tokens: list[int] = field(default_factory=list)
    trained: Outcome | None = None


def compare_run(
    config: Config, prompt: tuple[list[int], np.ndarray, Any], new_tokens: int, folder: Path, swap: bool = False
) -> Ours:
    """Imports `model.init_from`, and does what the reference does.

    Args:
        config: Its recipe under a layout.
        prompt: Token ids, images and their shapes, to continue.
        new_tokens: How many tokens to generate.
        folder: Gets checkpoints `imported` and `trained`.
        swap: A planted fault: exchanges gate and up projection of one layer.
    """
    with joined_world(BACKEND) as world:
        groups = make_groups(Layout.from_model(config.model, world.size), "gloo")
        trial = Trial(config, groups)
        if swap and trial.model.llm is not None:
            weight = trial.model.llm.decoder.layers[0].mlp.linear_fc1.weight
            weight.data.copy_(torch.cat(list(reversed(weight.data.chunk(2)))))
        found = Ours(logits=_logits(trial))
        _save(trial, folder / "imported")
        if world.rank == 0:
            trial.started.keep_origin(folder / "imported" / FOLDER)
        found.tokens = greedy(
            trial.runner,
            [Prompt(*prompt)],
            eos_id=-1,
            max_new_tokens=new_tokens,
            max_length=len(prompt[0]) + new_tokens,
        )[0]
        trial.model.train()
        found.trained = trial.run(range(config.trainer.steps))
        _save(trial, folder / "trained")
        return found


def adapted_run(config: Config, folder: Path) -> Ours:
    """Imports `model.init_from`, gives adapters and whatever else trains random values, and computes the logits.

    Args:
        config: A recipe with adapters.
        folder: Gets a checkpoint.
    """
    with joined_world(BACKEND) as world:
        trial = Trial(config, make_groups(Layout.from_model(config.model, world.size), "gloo"))
        generator = torch.Generator().manual_seed(0)
        for param in trial.model.parameters():
            if param.requires_grad:
                param.data.add_(0.1 * torch.randn(param.shape, generator=generator))
        _save(trial, folder)
        if world.rank == 0:
            trial.started.keep_origin(folder / FOLDER)
        return Ours(logits=_logits(trial))


def _save(trial: Trial, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_state({"model": model_state(trial.model, trial.groups)}, folder)


def _logits(trial: Trial) -> dict[str, np.ndarray]:
    """Of every position of the first batch."""
    runner, model, place = trial.runner, trial.model, trial.groups.place
    batches = trial._batches(trial.data.global_batch(0, trial.groups.layout.sequence_multiple))
    number = len(next(iter(batches.values())))
    found: dict[str, np.ndarray] = {}
    for index in range(number):
        part = {replica: [own[index]] for replica, own in batches.items()}
        rows = runner.encode(part)
        if place is None:
            continue
        batch = part[place.dp][0]

        def take(hidden: torch.Tensor, _: object) -> torch.Tensor:
            positions, samples = hidden.shape[:2]
            logits = model.llm.logits(hidden, torch.arange(positions * samples), gathered=True)
            parts = [torch.empty_like(logits) for _ in range(model.llm.tp_group.size())]
            dist.all_gather(parts, logits.contiguous(), group=model.llm.tp_group)
            whole = torch.cat(parts, -1)[:, : model.llm.vocab_size]
            return whole.view(positions, samples, -1).transpose(0, 1)

        for logits in runner.forward([batch], rows, take):
            for name, row, length in zip(batch.ids, logits, batch.lengths.tolist(), strict=True):
                found[name] = row[:length].numpy()
    return found
