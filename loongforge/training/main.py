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

    Raises:
        RunError: memory ran out; it says what would help.
    """
    backend = select(config.backend)
    backend.set_threads(config.trainer.threads or int(os.environ.get("OMP_NUM_THREADS", "2")))
    backend.activate()
    from loongforge.parallel.layout import Layout
    from loongforge.parallel.session import broadcast_object, joined_world
    from loongforge.training.out_of_memory import explain
    from loongforge.training.trainer import Trainer

    with joined_world(backend) as world:
        if world.size > 1:
            agreed = broadcast_object(tree)
            assert isinstance(agreed, dict)
            config, tree = typed_config(agreed), agreed
        assert config.run.dir is not None, "the launcher decides where the run lives"
        run_dir, trainer = Path(config.run.dir), None
        try:
            with Trainer(config, tree, world=world, backend=backend, run_dir=run_dir) as trainer:
                return trainer.run()
        except Exception as error:
            if not backend.tools().is_out_of_memory(error):
                raise
            layout, setup = Layout.from_model(config.model, world.size), trainer.setup if trainer is not None else None
            raise explain(
                error, config, backend, layout=layout, rank=world.rank, run_dir=run_dir, setup=setup
            ) from error
