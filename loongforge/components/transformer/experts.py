"""Feed-forward layers of many experts, of which each token takes a few (arXiv 2101.03961); no token is dropped.

Tensor-parallel ranks divide every expert as they divide a dense layer. Expert-parallel ranks hold different experts and
exchange tokens: each sends a token to the ranks that hold its experts, and adds up what comes back.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    all_to_all,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import sharded_state_dict_default

from loongforge.components.transformer.mlp import FeedForward
from loongforge.components.transformer.routing import Routing
from loongforge.kernels import ops


@dataclass(frozen=True)
class ExpertSizes:
    """Of one layer."""

    number: int
    """Experts of the layer, over all ranks."""
    per_token: int
    """Experts that a token takes."""
    hidden_size: int
    """Inner width of an expert."""
    normalised: bool
    """The weights of a token's experts add up to 1."""


class Router(torch.nn.Module):
    """Chooses experts by the softmax of a linear map (transformers `Qwen3MoeTopKRouter`)."""

    def __init__(self, sizes: ExpertSizes, width: int, dtype: torch.dtype, routing: Routing, layer: int) -> None:
        super().__init__()
        self.sizes, self.routing, self.layer = sizes, routing, layer
        self.weight = torch.nn.Parameter(torch.empty(sizes.number, width, dtype=dtype))

    def forward(self, x: torch.Tensor, real: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens `[T, H]`, of which bool `[T]` are no padding, -> weights `[T, k]` and numbers int64 `[T, k]` of their
        experts."""
        probabilities = F.linear(x, self.weight).softmax(-1, dtype=torch.float32)
        probabilities = self.routing.watch(self.layer, probabilities, real)
        weights, chosen = probabilities.topk(self.sizes.per_token, dim=-1)
        self.routing.note(self.layer, chosen, real)
        if self.sizes.normalised:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(x.dtype), chosen


class ExpertFeedForward(MegatronModule):
    """Router and this rank's experts. Take `ExpertFeedForward.over(...)` for a layer spec."""

    groups: ProcessGroupCollection
    sizes: ExpertSizes
    routing: Routing
    layer: int

    @classmethod
    def over(
        cls, groups: ProcessGroupCollection, sizes: ExpertSizes, routing: Routing, layer: int
    ) -> type[ExpertFeedForward]:
        """The class bound to a component's groups and to a layer's number from 0, for layers that hand over nothing but
        their config."""
        return type(cls.__name__, (cls,), {"groups": groups, "sizes": sizes, "routing": routing, "layer": layer})

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.tp_group, self.ep_group = self.groups.tp, self.groups.ep
        self.gate = Router(self.sizes, config.hidden_size, config.params_dtype, self.routing, self.layer)
        inner = copy.copy(config)
        inner.ffn_hidden_size = self.sizes.hidden_size
        kind = type("Expert", (FeedForward,), {"group": self.tp_group, "is_expert": True})
        mine = self.sizes.number // self.ep_group.size()
        numbers = range(self.ep_group.rank() * mine, (self.ep_group.rank() + 1) * mine)
        self.experts = torch.nn.ModuleDict({str(number): kind(inner) for number in numbers})
        for param in self.experts.parameters():
            param.allreduce = False  # type: ignore[attr-defined] # megatron-core sums their gradients over ranks with the same experts only

    def forward(
        self, hidden_states: torch.Tensor, padding_mask: torch.Tensor | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        """`[S, B, H]` -> `[S, B, H]`; under sequence parallelism this rank's part of S. No bias is left to be added.

        Args:
            hidden_states: Of all positions.
            padding_mask: bool `[S * B]` of whole rows (megatron-core's name, handed on by its layer): tokens that are
                no padding. They alone count for the balance; None: all.
        """
        split = self.config.sequence_parallel
        if split:
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=False, group=self.tp_group
            )
        tokens = hidden_states.flatten(0, 1)
        # the same on every tensor-parallel rank, whose experts are parts
        weights, chosen = self.gate(tokens, padding_mask)
        tokens, weights = (copy_to_tensor_model_parallel_region(x, group=self.tp_group) for x in (tokens, weights))
        output = self._mix(tokens, weights, chosen).view_as(hidden_states)
        if split:
            return reduce_scatter_to_sequence_parallel_region(output, group=self.tp_group), None
        return reduce_from_tensor_model_parallel_region(output, group=self.tp_group), None

    def _mix(self, tokens: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """`[T, H]`: each token's experts' outputs, weighted; under tensor parallelism this rank's part of the sum."""
        if len(tokens) == 1 and self.ep_group.size() == 1 and not torch.is_grad_enabled():
            return self._mix_of_one(tokens, weights, chosen)
        rows, order, counts = ops.moe_permute(tokens, chosen, self.sizes.number)
        return ops.moe_unpermute(self._exchange(rows, counts), order, weights)

    def _mix_of_one(self, token: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The same of a single token without gradients, where calls cost more than sums: its own experts alone."""
        experts: Any = self.experts._modules
        taken = [experts[str(number)].forward(token)[0] for number in chosen[0].tolist()]
        return weights @ torch.cat(taken)

    def _exchange(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """What the experts make of rows `[n, H]`, which are in the order of experts, `counts` int64 `[E]` of each."""
        ranks = self.ep_group.size()
        if ranks == 1:
            return self._run(rows, counts.tolist())
        received = torch.empty_like(counts)  # [rank, expert of mine]
        dist.all_to_all_single(received, counts, group=self.ep_group)
        sent_to = counts.view(ranks, -1).sum(1).tolist()
        got_from = received.view(ranks, -1).sum(1).tolist()
        arrived = all_to_all(self.ep_group, rows, got_from, sent_to)
        experts = torch.arange(len(received), device=rows.device) % len(self.experts)
        order = experts.repeat_interleave(received).argsort(stable=True)
        done = self._run(arrived.index_select(0, order), received.view(ranks, -1).sum(0).tolist())
        return all_to_all(self.ep_group, done.index_select(0, order.argsort()), sent_to, got_from)

    def _run(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Each of this rank's experts to its rows; with gradients also to none: every rank makes the same calls in its
        backward pass, and every parameter has a gradient."""
        every = torch.is_grad_enabled() or not len(rows)
        pairs = zip(self.experts.values(), rows.split(counts), strict=True)
        return torch.cat([expert.forward(part)[0] for expert, part in pairs if every or len(part)])

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Every expert under its own number, so that any number of ranks can divide them again."""
        assert metadata is not None
        found = sharded_state_dict_default(
            self.gate, f"{prefix}gate.", sharded_offsets, metadata, tp_group=self.tp_group
        )
        own = {**metadata, "dp_cp_group": self.groups.expt_dp}
        expert: Any
        for number, expert in self.experts.items():
            found.update(expert.sharded_state_dict(f"{prefix}experts.{number}.", sharded_offsets, own))
        return found
