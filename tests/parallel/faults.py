"""Mistakes that a heterogeneous layout invites; each must make the parity tests fail."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from loongforge.kernels.backend import select

select("auto").activate()

from loongforge.parallel.groups import Groups  # noqa: E402
from loongforge.training.optimizer import Optimizers  # noqa: E402

FAULTS = ("gradient scale", "embedding gradient", "norm double counting", "missing reduction")
"""The encoder's gradient is a mean over its replicas; text embeddings of other shards get none; the norm counts every
encoder rank; the encoder's replicas do not add up."""


@contextlib.contextmanager
def planted(fault: str, groups: Groups) -> Iterator[None]:
    """Training with a mistake."""
    real_reduce, real_norms = Optimizers.reduce_gradients, Optimizers._norms
    layout = groups.layout

    def reduce(self: Optimizers) -> None:
        if fault == "missing reduction":
            for name in [name for name in self.parts if name != "vision"]:
                self.parts[name].reduce()
            return
        real_reduce(self)
        if fault == "gradient scale" and "vision" in self.parts and layout.vision is not None:
            self.parts["vision"].ddp.scale_gradients(layout.dp / layout.vision.dp)
        if fault == "embedding gradient" and groups.place is not None and groups.place.tp > 0:
            embedding = getattr(self.parts["llm"].ddp.module, "embedding", None)
            if embedding is not None:
                embedding.word_embeddings.weight.main_grad.zero_()

    def norms(self: Optimizers) -> dict[str, float]:
        found = real_norms(self)
        if fault == "norm double counting" and layout.vision is not None:
            found["vision"] *= len(layout.vision.ranks) ** 0.5
        return found

    with contextlib.ExitStack() as stack:
        if fault in ("missing reduction", "gradient scale", "embedding gradient"):
            stack.enter_context(mock.patch.object(Optimizers, "reduce_gradients", reduce))
        if fault == "norm double counting":
            stack.enter_context(mock.patch.object(Optimizers, "_norms", norms))
        yield
