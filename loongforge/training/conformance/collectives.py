"""Stage `collectives`: what each gives is known beforehand, for every dtype that training sends."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from loongforge.parallel.native_output import native_output_on_stderr
from loongforge.training.conformance.context import Context
from loongforge.training.conformance.outcome import Check

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.uint8)
_SIZE = 5


def collectives(context: Context) -> list[Check]:
    """Of the default group, and of one made like a component's."""
    with native_output_on_stderr():
        group = dist.new_group(list(range(context.world_size)), backend=context.backend.dist_backend)
    checks = []
    for dtype in _DTYPES:
        for name, function in _CHECKS.items():
            checks.append(Check(f"{name} {str(dtype)[6:]}", function(context, group, dtype)))
    if context.backend.capability("reduce_avg").value == "yes":
        checks.append(Check("all_reduce average float32", _average(context, group)))
    values = _own(context, torch.float64, on_host=True)
    dist.all_reduce(values)
    right = torch.equal(values, _sum(context, torch.float64))
    checks.append(Check("all_reduce of a tensor on the host", right))
    note = "one process: its values are trivial" if context.world_size == 1 else f"{context.world_size} processes"
    return [*checks, Check("processes", True, note=note)]


def _rank_values(context: Context, rank: int, dtype: torch.dtype) -> torch.Tensor:
    """Small whole numbers, exact in every dtype."""
    return torch.arange(_SIZE).to(dtype) + 3 * rank + 1


def _own(context: Context, dtype: torch.dtype, *, on_host: bool = False) -> torch.Tensor:
    values = _rank_values(context, context.rank, dtype)
    return values if on_host else values.to(context.device)


def _everyone(context: Context, dtype: torch.dtype) -> torch.Tensor:
    return torch.stack([_rank_values(context, rank, dtype) for rank in range(context.world_size)])


def _sum(context: Context, dtype: torch.dtype) -> torch.Tensor:
    return _everyone(context, torch.float64).sum(0).to(dtype)


def _all_reduce(context: Context, group: dist.ProcessGroup, dtype: torch.dtype) -> bool:
    values = _own(context, dtype)
    dist.all_reduce(values, group=group)
    if context.planted("collective"):
        values[0] += 1
    return torch.equal(values.cpu(), _sum(context, dtype))


def _all_reduce_max(context: Context, group: dist.ProcessGroup, dtype: torch.dtype) -> bool:
    values = _own(context, dtype)
    dist.all_reduce(values, op=dist.ReduceOp.MAX, group=group)
    return torch.equal(values.cpu(), _rank_values(context, context.world_size - 1, dtype))


def _average(context: Context, group: dist.ProcessGroup) -> bool:
    values = _own(context, torch.float32)
    dist.all_reduce(values, op=dist.ReduceOp.AVG, group=group)
    return torch.allclose(values.cpu(), _everyone(context, torch.float32).mean(0))


def _all_gather(context: Context, group: dist.ProcessGroup, dtype: torch.dtype) -> bool:
    out = torch.empty(context.world_size * _SIZE, dtype=dtype, device=context.device)
    dist.all_gather_into_tensor(out, _own(context, dtype), group=group)
    return torch.equal(out.cpu(), _everyone(context, dtype).flatten())


def _reduce_scatter(context: Context, group: dist.ProcessGroup, dtype: torch.dtype) -> bool:
    out = torch.empty(_SIZE, dtype=dtype, device=context.device)
    dist.reduce_scatter_tensor(out, _own(context, dtype).repeat(context.world_size), group=group)
    return torch.equal(out.cpu(), _sum(context, dtype))


def _broadcast(context: Context, group: dist.ProcessGroup, dtype: torch.dtype) -> bool:
    values, source = _own(context, dtype), context.world_size - 1
    dist.broadcast(values, src=source, group=group)
    return torch.equal(values.cpu(), _rank_values(context, source, dtype))


def _sizes(rank: int, world_size: int) -> list[int]:
    """Rows that a rank sends to each other one: uneven, none to some."""
    return [(rank + other) % 3 for other in range(world_size)]


def _all_to_all(context: Context, group: dist.ProcessGroup, dtype: torch.dtype) -> bool:
    world, mine = context.world_size, _sizes(context.rank, context.world_size)
    coming = [_sizes(rank, world)[context.rank] for rank in range(world)]
    rows = torch.full((sum(mine), 2), context.rank + 1, dtype=dtype, device=context.device)
    out = torch.empty(sum(coming), 2, dtype=dtype, device=context.device)
    dist.all_to_all_single(out, rows, coming, mine, group=group)
    right = torch.tensor([rank + 1 for rank, size in enumerate(coming) for _ in range(size)], dtype=dtype)
    return torch.equal(out.cpu(), right[:, None].expand(-1, 2))


def _ring(context: Context, group: dist.ProcessGroup, dtype: torch.dtype) -> bool:
    """Everyone sends to the next one, at once, as the bridge does."""
    if context.world_size == 1:
        return True
    after, before = (context.rank + 1) % context.world_size, (context.rank - 1) % context.world_size
    arriving = torch.empty(_SIZE, dtype=dtype, device=context.device)
    works = dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, _own(context, dtype), after, group), dist.P2POp(dist.irecv, arriving, before, group)]
    )
    for work in works:
        work.wait()
    return torch.equal(arriving.cpu(), _rank_values(context, before, dtype))


_CHECKS: dict[str, Callable[[Context, dist.ProcessGroup, torch.dtype], bool]] = {
    "all_reduce sum": _all_reduce,
    "all_reduce max": _all_reduce_max,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "broadcast": _broadcast,
    "all_to_all, uneven": _all_to_all,
    "send and receive": _ring,
}
