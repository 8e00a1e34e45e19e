"""Mistakes that a heterogeneous layout invites; each must make the parity tests fail."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from loongforge.kernels.backend import select

select("auto").activate()

import torch  # noqa: E402

from loongforge.components.transformer import experts  # noqa: E402
from loongforge.components.transformer.experts import ExpertFeedForward, Router  # noqa: E402
from loongforge.components.transformer.lora import LowRank  # noqa: E402
from loongforge.components.transformer.router_spec import RouterSpec  # noqa: E402
from loongforge.components.transformer.sequence import SequenceView  # noqa: E402
from loongforge.model.balance import ExpertCounts  # noqa: E402
from loongforge.model.encoding import Bridge  # noqa: E402
from loongforge.model.execution import Runner  # noqa: E402
from loongforge.parallel.groups import Groups  # noqa: E402
from loongforge.training import optimizer  # noqa: E402
from loongforge.training.optimizer import Optimizers  # noqa: E402


@contextlib.contextmanager
def planted(fault: str, groups: Groups) -> Iterator[None]:
    """Training with a mistake; an empty name is none."""
    faults = _Faults(groups)
    with faults.plant(fault) if fault else contextlib.nullcontext():
        yield


class _Faults:
    def __init__(self, groups: Groups) -> None:
        self.groups = groups

    def plant(self, fault: str) -> Any:
        reduce = mock.patch.object(
            Optimizers, "reduce_gradients", _after(Optimizers.reduce_gradients, self._spoil(fault))
        )
        others = {
            "local count": lambda: mock.patch.object(Runner, "train", _local_count(Runner.train)),
            "missing reduction": lambda: mock.patch.object(Optimizers, "reduce_gradients", _reduce_without_vision),
            "norm double counting": lambda: mock.patch.object(Optimizers, "_norms", self._norms(Optimizers._norms)),
            "lost rows": lambda: mock.patch.object(Bridge, "give_back", _losing_rows(Bridge.give_back)),
            "experts of all ranks": lambda: mock.patch.object(
                ExpertFeedForward, "__init__", _dense_experts(ExpertFeedForward.__init__)
            ),
            "part of the router": lambda: mock.patch.object(
                experts, "copy_to_tensor_model_parallel_region", lambda x, group: x
            ),
            "first experts only": lambda: mock.patch.object(Router, "forward", _first_experts(0)),
            "last experts only": lambda: mock.patch.object(Router, "forward", _first_experts(-1)),
            "loads of a replica": lambda: mock.patch.object(ExpertCounts, "settle", _own_loads),
            "loads of a micro-batch": lambda: mock.patch.object(RouterSpec, "counts_first", return_value=False),
            "padding counts": lambda: mock.patch.object(SequenceView, "real", None),
            "experts draw with others": _drawing_with_others,
            "experts' adapters in parts": lambda: mock.patch.object(optimizer, "_sum_parts"),
            "experts' adapters as dense ones": lambda: mock.patch.object(
                LowRank, "_across_ranks", _summed(LowRank._across_ranks)
            ),
            "adapter sum": lambda: mock.patch.object(LowRank, "_across_ranks", _only_forward(LowRank._across_ranks)),
            "late document": lambda: mock.patch.object(SequenceView, "mask", _late(SequenceView.mask)),
        }
        return others[fault]() if fault in others else reduce

    def _spoil(self, fault: str) -> Callable[[Optimizers], None]:
        layout, place = self.groups.layout, self.groups.place

        def spoil(optimizers: Optimizers) -> None:
            if fault == "gradient scale" and "vision" in optimizers.parts:
                assert layout.vision is not None
                optimizers.parts["vision"].ddp.scale_gradients(layout.dp / layout.vision.dp)
            if fault == "embedding gradient" and place is not None and place.tp > 0 and place.pp == 0:
                optimizers.parts["llm"].ddp.module.embedding.word_embeddings.weight.main_grad.zero_()

        return spoil

    def _norms(self, real: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
        vision = self.groups.layout.vision
        assert vision is not None

        def norms(optimizers: Optimizers) -> dict[str, float]:
            found = real(optimizers)
            return {**found, "vision": found["vision"] * len(vision.ranks) ** 0.5}

        return norms


def _after(real: Callable[..., None], more: Callable[[Optimizers], None]) -> Callable[..., None]:
    def both(optimizers: Optimizers) -> None:
        real(optimizers)
        more(optimizers)

    return both


def _dense_experts(real: Callable[..., None]) -> Callable[..., None]:
    def init(layer: ExpertFeedForward, **options: Any) -> None:
        real(layer, **options)
        for param in layer.experts.parameters():
            param.allreduce = True  # type: ignore[attr-defined]

    return init


def _first_experts(shift: int) -> Callable[..., Any]:
    """No mistake: a router that sends all tokens to the same experts, the first or the last ones."""

    def forward(router: Router, x: Any, real: Any = None) -> Any:
        number, k = router.sizes.number, router.sizes.per_token
        probabilities = torch.nn.functional.linear(x, router.weight).softmax(-1, dtype=torch.float32)
        chosen = (torch.arange(k) + (number - k if shift else 0)).expand(len(x), k)
        weights = probabilities.gather(1, chosen)
        if router.sizes.normalised:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(x.dtype), chosen

    return forward


@contextlib.contextmanager
def _drawing_with_others() -> Iterator[None]:
    """From the same random numbers as what ranks share, though ranks draw for different rows: here for some or none."""

    def random(adapter: LowRank, own: bool) -> Any:
        return contextlib.nullcontext()

    with (
        mock.patch.object(Router, "forward", _first_experts(0)),
        mock.patch.object(LowRank, "_random", random),
    ):
        yield


def _own_loads(counts: ExpertCounts) -> None:
    if counts.routing is not None:
        counts.routing.loads = counts.routing.noted(counts.device)[0].sum(0)


def _reduce_without_vision(optimizers: Optimizers) -> None:
    for name, part in optimizers.parts.items():
        if name != "vision":
            part.reduce()


def _local_count(real: Callable[..., Any]) -> Callable[..., Any]:
    def train(runner: Runner, micro_batches: Any, num_label_tokens: int) -> Any:
        own = [batch for part in micro_batches.values() for batch in part]
        return real(runner, micro_batches, sum(int((batch.labels != -100).sum()) for batch in own))

    return train


def _losing_rows(real: Callable[..., Any]) -> Callable[..., Any]:
    def give_back(bridge: Bridge, window: Any, parts: Any) -> Any:
        for part in parts:
            if part is not None:
                part.grad[0] = 0
        return real(bridge, window, parts)

    return give_back


def _late(real: Callable[..., Any]) -> Callable[..., Any]:
    def mask(view: SequenceView, part: slice, window: int | None = None) -> Any:
        found = real(view, part, window)
        found[0, : int(view.positions[part][0]) + 2] = True
        return found

    return mask


def _summed(real: Callable[..., Any]) -> Callable[..., Any]:
    def crossed(adapter: LowRank, hidden: Any) -> Any:
        with mock.patch.object(adapter, "of_expert", new=False):
            return real(adapter, hidden)

    return crossed


def _only_forward(real: Callable[..., Any]) -> Callable[..., Any]:
    """The value that crossed the ranks, with the gradient of the one that did not."""

    def crossed(adapter: LowRank, hidden: Any) -> Any:
        value = real(adapter, hidden)
        return hidden + (value - hidden).detach() if value.shape == hidden.shape else value

    return crossed
