"""Starts the processes of a verification and reads what they found."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from loongforge.config.saved import to_tree
from loongforge.config.schema import Config
from loongforge.kernels.backend import select
from loongforge.training.job import Job
from loongforge.training.launcher import launch
from loongforge.training.telemetry.logs import setup_logging
from loongforge.training.verify.compare import Comparison, compare

ENTRY = "loongforge.training.verify.run:on_rank"


def verify(config: Config, world_size: int, folder: Path, *, pack: bool) -> Comparison | None:
    """Trains a small recipe under its layout and in one process, and compares.

    Args:
        config: From `small_recipe`, with the parallel sizes to verify.
        world_size: Ranks of the layout.
        folder: For what the ranks find, and their logs.
        pack: Also pack the samples under the layout (one process pads them).

    Returns:
        None where a rank failed; the launcher has shown why.
    """
    single = to_tree(config)
    for part in single["model"].values():
        if part is not None:
            part["parallel"] = {}
    found = []
    for name, tree, size, packing in (("one", single, 1, False), ("layout", to_tree(config), world_size, pack)):
        results = folder / name
        results.mkdir(parents=True)
        job = Job(ENTRY, tree, {"folder": str(results), "pack": packing})
        if launch(job, size, results, threads=1) != 0:
            return None
        # written a moment ago by our own processes
        found.append([pickle.loads((results / f"rank_{rank}.pickle").read_bytes()) for rank in range(size)])
    return compare(found[0][0], found[1])


def on_rank(config: Config, tree: dict[str, Any], *, folder: str, pack: bool) -> int:
    """What every process does."""
    backend = select(config.backend)
    backend.set_threads(1)
    setup_logging(Path(folder), int(os.environ["RANK"]))
    from loongforge.parallel.groups import make_groups
    from loongforge.parallel.layout import Layout
    from loongforge.parallel.session import joined_world
    from loongforge.training.verify.trial import Trial

    with joined_world(backend) as world:
        groups = make_groups(Layout.from_model(config.model, world.size), backend.dist_backend)
        outcome = Trial(config, groups, pack=pack).run(range(config.trainer.steps))
        (Path(folder) / f"rank_{world.rank}.pickle").write_bytes(pickle.dumps(outcome))
    return 0
