"""This rank's part of encoding a window's images: vision encoder, projector, and the way between their layouts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from loongforge.model.vlm import ImageSpec, VisionLanguageModel
from loongforge.model.windows import Window
from loongforge.parallel.exchange import Delivery, Exchange, Rows
from loongforge.parallel.groups import Groups
from loongforge.parallel.images import ImageShape, total

ByReplica = dict[int, torch.Tensor]


@dataclass
class Encoded:
    """A window's image rows on this rank, with what their backward pass needs."""

    window: Window
    rows: ByReplica
    """`[n, H]` by LLM replica, of the images that this rank's projector took."""
    features: ByReplica
    """Outputs of the vision encoder; empty where the projector has the same layout (then they are part of `rows`)."""
    arrived: ByReplica
    """The projector's inputs that came from other layouts."""


class ImageEncoder:
    """Encodes windows.

    Args:
        model: This rank's parts.
        groups: Of all components.
        exchange: This rank's messages.
        device: This rank's.
    """

    def __init__(self, model: VisionLanguageModel, groups: Groups, exchange: Exchange, device: torch.device) -> None:
        assert model.images is not None
        self.model, self.groups, self.exchange, self.spec = model, groups, exchange, model.images
        self.phases = exchange.phases
        self.apart = groups.layout.vision != groups.layout.projector
        self.feature_rows = Rows(self.spec.feature_shape, self.spec.feature_dtype, device)

    def forward(self, window: Window) -> Encoded:
        """Features of this rank's share of the images, projected."""
        with self.phases("encode"):
            return self._forward(window)

    def _forward(self, window: Window) -> Encoded:
        features = self._features(window)
        arrived: ByReplica = {}
        if self.apart:
            arrived = self._to_projector(window, features)
            inputs = arrived
        else:
            inputs, features = features, {}
        return Encoded(window, self._project(window, inputs), features, arrived)

    def _features(self, window: Window) -> ByReplica:
        """`[n, P, width]`, or `[features, width]` where images differ in size, by LLM replica."""
        model = self.model
        if model.vision is None:
            return {}
        pixels = window.pixels(self.groups.rank)
        if not pixels:
            return {}
        shapes = window.shapes("vision", self.groups.rank)
        with contextlib.nullcontext() if self.spec.vision_trains else torch.no_grad():
            features = model.encode(_joined(pixels), None if shapes is None else _chain(shapes, pixels))
        lengths = [len(part) if shapes is None else total(shapes[r], "features") for r, part in pixels.items()]
        return dict(zip(pixels, features.split(lengths), strict=True))

    def _project(self, window: Window, inputs: ByReplica) -> ByReplica:
        if not inputs or self.model.projector is None:
            return {}
        shapes = window.shapes("projector", self.groups.rank)
        if shapes is not None:
            rows = self.model.project_any(_joined(inputs), _chain(shapes, inputs))  # [tokens, H]
            return dict(zip(inputs, rows.split([total(shapes[r], "tokens") for r in inputs]), strict=True))
        rows = self.model.project(_joined(inputs))  # [N, P, H]
        parts = rows.split([len(part) for part in inputs.values()])
        return {replica: part.flatten(0, 1) for replica, part in zip(inputs, parts, strict=True)}

    def _to_projector(self, window: Window, features: ByReplica) -> ByReplica:
        with self.phases("bridge"):
            ways = {replica: images.between_encoders(back=False) for replica, images in window.images.items()}
            delivery = self.exchange.start("forward", ways, features, self.feature_rows)
        arrived = delivery.wait()
        delivery.sent()
        grad = torch.is_grad_enabled() and self.spec.vision_trains
        return {replica: part.requires_grad_(grad) for replica, part in arrived.items()}

    def backward(self, encoded: Encoded, grads: Mapping[int, torch.Tensor]) -> None:
        """Adds the gradients of the encoder's weights.

        Args:
            encoded: From `forward`.
            grads: Gradients of its rows, by LLM replica.
        """
        with self.phases("encode"):
            self._walk_back(encoded, grads)

    def _walk_back(self, encoded: Encoded, grads: Mapping[int, torch.Tensor]) -> None:
        _backward(encoded.rows, grads)
        if not self.apart or not self.spec.vision_trains:
            return
        with self.phases("bridge"):
            ways = {replica: images.between_encoders(back=True) for replica, images in encoded.window.images.items()}
            held = {replica: part.grad for replica, part in encoded.arrived.items() if part.grad is not None}
            delivery = self.exchange.start("backward", ways, held, self.feature_rows)
        _backward(encoded.features, delivery.wait())
        delivery.sent()


def _joined(parts: ByReplica) -> torch.Tensor:
    return torch.cat(list(parts.values()))


def _chain(shapes: Mapping[int, list[ImageShape]], replicas: Iterable[int]) -> list[ImageShape]:
    return [shape for replica in replicas for shape in shapes[replica]]


def _backward(outputs: ByReplica, grads: Mapping[int, torch.Tensor]) -> None:
    """One backward pass for all replicas, since they share a graph."""
    wanted = [replica for replica, rows in outputs.items() if rows.requires_grad]
    if wanted:
        torch.autograd.backward([outputs[r] for r in wanted], [grads[r].to(outputs[r].dtype) for r in wanted])


class Bridge:
    """Carries image rows from the encoder's ranks to those of the LLM that merge them, and their gradients back.

    Args:
        spec: What images become.
        groups: Of all components.
        exchange: This rank's messages.
        device: This rank's.
    """

    def __init__(self, spec: ImageSpec, groups: Groups, exchange: Exchange, device: torch.device) -> None:
        self.exchange, self.phases, self.rank = exchange, exchange.phases, groups.rank
        self.rows = Rows((spec.row_size,), spec.row_dtype, device)
        self.returns = spec.vision_trains or spec.projector_trains
        """Something before the bridge trains; otherwise no gradient travels."""
        place = groups.place
        self.replica = None if place is None or place.pp != 0 else place.dp
        """The LLM replica whose rows this rank merges; None: it merges none."""

    def deliver(self, window: Window, rows: Mapping[int, torch.Tensor]) -> Delivery:
        """Starts sending a window's rows; a rank that has encoded none passes an empty mapping."""
        with self.phases("bridge"):
            ways = {replica: images.to_llm for replica, images in window.images.items()}
            return self.exchange.start("forward", ways, rows, self.rows)

    def accept(self, window: Window, delivery: Delivery) -> list[torch.Tensor | None]:
        """Waits for the rows that this rank merges.

        Returns:
            Rows `[n, H]` of each of its micro-batches, which collect their gradients where something before the bridge
            trains; None where it has none. Empty where the rank merges nothing of this window.
        """
        arrived = delivery.wait()
        if self.replica is None or self.replica not in window.images:  # it only encodes for other replicas
            return []
        sizes = [len(rows) for rows in window.images[self.replica].merged(self.rank)]
        if self.replica not in arrived:
            return [None] * len(sizes)
        grad = self.returns and torch.is_grad_enabled()
        parts = arrived[self.replica].split(sizes)
        return [part.detach().requires_grad_(grad) if len(part) else None for part in parts]

    def give_back(self, window: Window, parts: Sequence[torch.Tensor | None]) -> Delivery:
        """Starts returning the gradients of what `accept` gave; ranks that merge nothing pass an empty list."""
        with self.phases("bridge"):
            grads = [part.grad for part in parts if part is not None and part.grad is not None]
            held = {self.replica: torch.cat(grads)} if grads and self.replica is not None else {}
            ways = {replica: images.to_encoder for replica, images in window.images.items()}
            return self.exchange.start("backward", ways, held, self.rows)
