"""Weights of a model from Hugging Face folders, under any layout: checked by all ranks, then each reads its slices."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from loongforge.checkpoint.hf_checks import listed
from loongforge.checkpoint.hf_import import HFImport
from loongforge.checkpoint.hf_source import Finding
from loongforge.components.lora import is_adapter
from loongforge.components.sharding import Shard, shards
from loongforge.config.errors import UserError
from loongforge.model.vlm import VisionLanguageModel
from loongforge.parallel.session import broadcast_object, gather_lists


def load_hf_weights(model: VisionLanguageModel, wanted: HFImport) -> dict[str, Finding]:
    """Takes weights of components from a folder. Collective over the world.

    Args:
        model: This rank's parts.
        wanted: The folder, and which components take what.

    Returns:
        What was found, by component, on every rank.

    Raises:
        UserError: everything that is missing, left over or of another shape; no weight has changed then.
    """
    mine, findings = _checked(model, wanted)
    with _progress(mine) as advance:
        for name, own in mine.items():
            for count in wanted.sources[name].fill(own):
                advance(count)
    return findings


def check_hf_weights(model: VisionLanguageModel, wanted: HFImport) -> dict[str, Finding]:
    """As `load_hf_weights`, without reading weights."""
    return _checked(model, wanted)[1]


def _checked(model: VisionLanguageModel, wanted: HFImport) -> tuple[dict[str, list[Shard]], dict[str, Finding]]:
    """This rank's shards, and what all ranks found."""
    parts = {name: part for name, part in model.components().items() if name in wanted.sources}
    mine = {name: _own_shards(part) for name, part in parts.items()}
    findings = {name: Finding() for name in wanted.sources}
    for name, finding in gather_lists([(name, wanted.sources[name].check(mine[name])) for name in mine]):
        findings[name].add(finding)
    problems = broadcast_object(wanted.problems(findings) if dist.get_rank() == 0 else None)
    if problems:
        assert isinstance(problems, list)
        raise UserError(f"{wanted.path} does not hold what the recipe describes:{listed(problems)}")
    return mine, findings


def _own_shards(part: Any) -> list[Shard]:
    """Those that a checkpoint has; adapters are new."""
    return [shard for shard in shards(part, part.tp_group) if not is_adapter(shard.name)]


@contextmanager
def _progress(mine: dict[str, list[Shard]]) -> Iterator[Callable[[int], None]]:
    """A bar in rank 0's terminal that counts the bytes read; calling what it yields moves it on."""
    if dist.get_rank() != 0 or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    total = sum(shard.param.numel() * shard.param.element_size() for own in mine.values() for shard in own)
    columns = (
        TextColumn("reading weights"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)
