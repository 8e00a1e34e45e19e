"""Process groups of each component, made from the layout; modules take them as arguments."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from loongforge.parallel.grid import Coordinates, Grid
from loongforge.parallel.layout import Layout
from loongforge.parallel.native_output import native_output_on_stderr

_AXES = {
    "tp": ("tp",),
    "cp": ("cp",),
    "dp": ("dp",),
    "pp": ("pp",),
    "dp_cp": ("dp", "cp"),
    "tp_cp": ("tp", "cp"),
    "mp": ("tp", "pp"),
    "everyone": ("tp", "cp", "dp", "pp"),
}
_EXPERT_AXES = {
    "ep": ("ep",),
    "expt_dp": ("edp",),
    "tp_ep": ("tp", "ep"),
    "tp_ep_pp": ("tp", "ep", "pp"),
}


@dataclass(frozen=True)
class Groups:
    """This rank's groups; None for a component that it does not hold."""

    layout: Layout
    rank: int
    llm: ProcessGroupCollection | None
    vision: ProcessGroupCollection | None = None
    projector: ProcessGroupCollection | None = None
    forward: dist.ProcessGroup | None = None
    """Carries image-token embeddings from encoders to the LLM; None: the default group."""
    backward: dist.ProcessGroup | None = None
    """Carries their gradients back, beside `forward`."""

    def of(self, component: str) -> ProcessGroupCollection | None:
        """Groups of `vision`, `projector` or `llm`."""
        collection: ProcessGroupCollection | None = getattr(self, component)
        return collection

    @property
    def place(self) -> Coordinates | None:
        """This rank's place in the LLM; None where it holds an encoder only."""
        return self.layout.llm.place(self.rank)

    @property
    def replicas(self) -> tuple[int, ...]:
        """LLM replicas whose samples this rank works on."""
        return self.layout.replicas(self.rank)

    @property
    def reported(self) -> int | None:
        """The LLM replica that this rank speaks for; None where another rank does."""
        place = self.place
        if place is None or self.layout.reporting_rank(place.dp) != self.rank:
            return None
        return place.dp


@native_output_on_stderr()
def make_groups(layout: Layout, dist_backend: str, *, seed: int = 1234) -> Groups:
    """Makes all groups, and seeds the random states of megatron-core. Collective over the world.

    Groups of the same ranks are made once. megatron-core's global parallel state knows no groups: all that it builds is
    told its own.
    """
    rank = dist.get_rank()
    known: dict[tuple[int, ...], dist.ProcessGroup | None] = {}
    collections = {
        name: _collection(grid, rank, dist_backend, known, ties=name == "llm") for name, grid in layout.grids().items()
    }
    place = layout.llm.place(rank)
    parallel_state._set_global_memory_buffer()  # sequence parallelism gathers into it
    model_parallel_cuda_manual_seed(seed, tp_rank=place.tp if place else 0, ep_rank=0, etp_rank=0)
    ways: dict[str, dist.ProcessGroup] = {}
    if layout.decoupled:
        # one communicator per direction: a gradient never waits behind embeddings that are still to be made
        everyone = list(range(layout.world_size))
        ways = {way: dist.new_group(everyone, backend=dist_backend) for way in ("forward", "backward")}
        for group in ways.values():
            dist.barrier(group)  # NCCL wants all ranks in a group's first call
    dist.barrier()  # a rank that is done at once would close connections that a slower one is still making
    return Groups(layout, rank, collections["llm"], collections.get("vision"), collections.get("projector"), **ways)


def _collection(
    grid: Grid, rank: int, backend: str, known: dict[tuple[int, ...], dist.ProcessGroup | None], *, ties: bool
) -> ProcessGroupCollection | None:
    """A component's groups. Every rank takes part in making them, also where it is in none."""

    def mine(parts: list[tuple[int, ...]]) -> dist.ProcessGroup | None:
        found = None
        for ranks in parts:
            if ranks not in known:
                group = dist.new_group(list(ranks), backend=backend)
                known[ranks] = group if rank in ranks else None
            found = known[ranks] if rank in ranks else found
        return found

    made = {name: mine(grid.groups(axes)) for name, axes in _AXES.items()}
    experts = {name: mine(grid.expert_groups(axes)) for name, axes in _EXPERT_AXES.items()}
    pipelines = grid.groups(("pp",))
    # the stages that hold the token embedding or, tied to it, the output layer
    embd = mine([tuple(dict.fromkeys((ranks[0], ranks[-1]))) for ranks in pipelines]) if ties else made["pp"]
    pos_embd = mine([(ranks[0],) for ranks in pipelines]) if ties else made["pp"]
    if rank not in grid.ranks:
        return None
    everyone = made.pop("everyone")
    return ProcessGroupCollection(
        **made,
        intra_dp_cp=made["dp_cp"],
        intra_dist_opt=everyone,
        tp_dp_cp=everyone,
        embd=embd,
        pos_embd=pos_embd,
        **experts,
        expt_tp=made["tp"],
        intra_expt_dp=experts["expt_dp"],
        inter_dist_opt=None,
    )
