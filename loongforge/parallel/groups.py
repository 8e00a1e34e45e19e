"""Process groups of each component, made from the layout; modules take them as arguments."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.hyper_comm_grid import HyperCommGrid
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from loongforge.parallel.layout import Coordinates, Layout


@dataclass(frozen=True)
class Groups:
    """This rank's groups; None for a component that it does not hold."""

    layout: Layout
    place: Coordinates
    llm: ProcessGroupCollection
    encoder: ProcessGroupCollection | None

    def of(self, component: str) -> ProcessGroupCollection | None:
        """Groups of `vision`, `projector` or `llm`."""
        return self.llm if component == "llm" else self.encoder


def make_groups(layout: Layout, dist_backend: str, *, seed: int = 1234) -> Groups:
    """Makes all groups, and seeds the random states of megatron-core. Collective over the world.

    The LLM's sizes go to megatron-core's global state too, since parts of it still read that: the vocabulary-parallel
    cross-entropy, tied embeddings in checkpoints, the random state tracker.
    """
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        create_gloo_process_groups=False,
    )
    model_parallel_cuda_manual_seed(seed)
    llm = ProcessGroupCollection.use_mpu_process_groups()
    encoder = llm if layout.pp == 1 else _encoder_groups(layout, dist_backend)
    return Groups(layout, layout.coordinates(dist.get_rank()), llm, encoder)


def _encoder_groups(layout: Layout, dist_backend: str) -> ProcessGroupCollection | None:
    """Groups over the first pipeline stage. Every rank takes part in making them."""
    grid = HyperCommGrid([layout.tp, 1, 1, layout.dp], ["tp", "cp", "pp", "dp"], backend=dist_backend)
    made = {name: grid.create_pg([name]) for name in ("tp", "cp", "pp", "dp")}
    made["dp_cp"] = grid.create_pg(["dp", "cp"])
    made["mp"] = grid.create_pg(["tp", "pp"])
    made["tp_cp"] = grid.create_pg(["tp", "cp"])
    everyone = grid.create_pg(["tp", "cp", "pp", "dp"])
    if dist.get_rank() not in layout.ranks("vision"):
        return None
    single = made["cp"]
    return ProcessGroupCollection(
        **made,
        intra_dp_cp=made["dp_cp"],
        intra_dist_opt=everyone,
        tp_dp_cp=everyone,
        embd=made["pp"],
        pos_embd=made["pp"],
        ep=single,
        expt_tp=single,
        tp_ep=single,
        tp_ep_pp=single,
        expt_dp=single,  # None would make megatron-core form a group of the whole world, without the other stages
        intra_expt_dp=single,
        inter_dist_opt=None,
    )
