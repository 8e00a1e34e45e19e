"""What the data side hands to the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from loongforge.config.errors import UserError
from loongforge.parallel.images import ImageShape, Shapes
from loongforge.parallel.routes import ImagePlan

if TYPE_CHECKING:
    import torch

    from loongforge.data.processed import ProcessedSample
    from loongforge.data.processing import SampleProcessor

IGNORE = -100
"""Label of a position without loss."""


@dataclass
class Batch:
    """One micro-batch of one data-parallel rank; B samples, S tokens, N images."""

    tokens: torch.Tensor
    """int64 [B, S], right-padded; a placeholder is already `num_image_tokens` image tokens."""
    labels: torch.Tensor
    """int64 [B, S]; labels[b, t] is the target of position t (already shifted), -100 = no loss."""
    images: torch.Tensor
    """float32 [N, 3, H, W], in order of appearance in the batch; N may be 0. With `shapes`: their rows of pixels."""
    lengths: torch.Tensor
    """int64 [B], real tokens of each row."""
    ids: list[str]
    """Sample ids; "" is a padding row of an evaluation batch."""
    cu_seqlens: torch.Tensor | None = None
    """int32 [D + 1], from 0 to S: borders of the documents of a packed row (B is 1 then); None: a row is a document."""
    image_plan: ImagePlan | None = None
    """Which images of the micro-batch `images` holds, and who encodes them; None: all, in even shares."""
    shapes: Shapes | None = None
    """Of all images of the micro-batch, read by this rank or not; None: they are of the encoder's one size."""

    def to(self, device: torch.device) -> Batch:
        """The batch where the model is; lengths stay on the host, which alone reads them."""
        import torch

        held = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "lengths"}
        moved: dict[str, Any] = {name: x.to(device) for name, x in held.items() if isinstance(x, torch.Tensor)}
        return replace(self, **moved)

    @property
    def num_images(self) -> int:
        """Images of the micro-batch, read by this rank or not."""
        if self.image_plan is not None:
            return self.image_plan.total
        return len(self.images) if self.shapes is None else len(self.shapes)

    @property
    def held_patches(self) -> int:
        """Patches of the images that this rank has read; where all are of one size, their number."""
        if self.shapes is None:
            return len(self.images)
        held = range(len(self.shapes)) if self.image_plan is None else self.image_plan.held
        return sum(self.shapes[number].patches for number in held)


@dataclass(frozen=True)
class BadSample:
    """A sample left out, and what took its place."""

    source: str
    shard: str
    key: str
    id: str
    reason: str
    step: int
    replaced_by: str
    """Key and shard of the sample that was tried instead."""
    dropped: bool = False
    """Left out because the recipe says so of samples like this (`data.too_long: drop`): no fault of the data."""


@dataclass
class StepData:
    """What one rank needs for one step, by LLM replica. All micro-batches of a replica have the same S."""

    micro_batches: dict[int, list[Batch]]
    bad: dict[int, list[BadSample]] = field(default_factory=dict)
    fingerprint: int = 0
    """Of the arrangement of the global batch: the same on every rank, or they have not seen the same data."""


def targets(sample: ProcessedSample) -> np.ndarray:
    """int [T - 1], what each position but the last has to predict; `IGNORE` where that is not learned."""
    return np.where(sample.learned[1:], sample.ids[1:], IGNORE)


def collate(
    samples: list[ProcessedSample],
    processor: SampleProcessor,
    *,
    rows: int,
    length: int,
    image_plan: ImagePlan | None = None,
) -> Batch:
    """Makes a batch of `rows` rows; rows without a sample are padding (no label, no image, id "").

    Args:
        samples: at most `rows`.
        processor: pads and normalises.
        rows: B.
        length: S, at least the longest sample.
        image_plan: of the batch.

    Raises:
        UserError: one is a packed row.
    """
    import torch

    tokens = np.full((rows, length), processor.pad_id, np.int64)
    labels = np.full((rows, length), IGNORE, np.int64)
    lengths = np.zeros(rows, np.int64)
    for row, sample in enumerate(samples):
        if sample.ends:
            raise UserError(
                f"{sample.id} is a packed row of {len(sample.ends)} samples (loongforge data pack): train on it with "
                "packing.enabled=true; for data.eval name the data that it was made from"
            )
        lengths[row] = size = len(sample.ids)
        tokens[row, :size] = sample.ids
        labels[row, : size - 1] = targets(sample)
    pixels = processor.normalise([image for sample in samples for image in sample.pixels])
    return Batch(
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(labels),
        images=torch.from_numpy(pixels),
        lengths=torch.from_numpy(lengths),
        ids=[sample.id for sample in samples] + [""] * (rows - len(samples)),
        image_plan=image_plan,
        shapes=shapes_of(samples, processor),
    )


def shapes_of(samples: Sequence[ProcessedSample], processor: SampleProcessor) -> list[ImageShape] | None:
    """Of all images of a micro-batch; None where the encoder takes one size only."""
    return [shape for sample in samples for shape in sample.shapes] if processor.any_size else None


def padded_length(samples: list[ProcessedSample], multiple: int) -> int:
    """The longest sample, rounded up to a multiple; at least one multiple."""
    longest = max((len(sample.ids) for sample in samples), default=1)
    return -(-longest // multiple) * multiple
