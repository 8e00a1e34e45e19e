"""What every process of a training run does: join the world, set up, train."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from loongforge.components.registry import typed_config
from loongforge.config.schema import Config
from loongforge.kernels.backend import select


def run(config: Config, tree: dict[str, Any]) -> int:
    """Trains as the recipe says. Called by the only process of a run, or by each of many.

    Args:
        config: The validated recipe.
        tree: The same as a plain resolved tree; rank 0's is taken by all ranks, so that nothing that depends on time
            can differ.

    Returns:
        Exit code.
    """
    backend = select(config.backend)
    backend.set_threads(config.trainer.threads or int(os.environ.get("OMP_NUM_THREADS", "2")))
    backend.activate()
    from loongforge.parallel.session import broadcast_object, joined_world
    from loongforge.training.trainer import Trainer

    with joined_world(backend) as world:
        if world.size > 1:
            agreed = broadcast_object(tree)
            assert isinstance(agreed, dict)
            config, tree = typed_config(agreed), agreed
        assert config.run.dir is not None, "the launcher decides where the run lives"
        with Trainer(config, tree, world=world, backend=backend, run_dir=Path(config.run.dir)) as trainer:
            return trainer.run()
