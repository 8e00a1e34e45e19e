"""A window: the micro-batches whose images are encoded together, and where their image rows have to go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from loongforge.parallel.grid import Grid
from loongforge.parallel.images import ImageShape, Shapes, expand, sizes
from loongforge.parallel.layout import Layout
from loongforge.parallel.routes import ImagePlan, Transfer, image_shares, plan_transfers, sequence_slice


class Inputs(Protocol):
    """What the model reads of a micro-batch (`loongforge.data.batch.Batch` is one)."""

    tokens: torch.Tensor
    """int64 `[B, S]`; every image token stands for one feature vector."""
    labels: torch.Tensor
    """int64 `[B, S]`: target of each position, or -100."""
    images: torch.Tensor
    """float32 `[N, 3, height, width]`, in the order in which they appear; where they differ in size, one after another
    along the first axis, with `ImageShape.pixels` rows each."""
    cu_seqlens: torch.Tensor | None
    """int32 `[D + 1]`: borders of the documents of a packed row (B is 1 then); None: every row is one document."""
    image_plan: ImagePlan | None
    """Which images `images` holds and who encodes them; None: all, in even shares."""
    shapes: Shapes | None
    """Of all its images, whoever holds them, in order of appearance; None: all are of the encoder's one size."""

    @property
    def lengths(self) -> torch.Tensor | None:
        """int64 `[B]`: real tokens of each row; None: all are."""


@dataclass(frozen=True)
class ReplicaImages:
    """Images of one LLM replica's part of a window. Image rows are numbered in order of appearance over the window."""

    layout: Layout
    replica: int
    micro_batches: Sequence[Inputs]
    image_token: int

    @cached_property
    def num_images(self) -> int:
        """Images of all its micro-batches."""
        return sum(map(num_images, self.micro_batches))

    @cached_property
    def shapes(self) -> list[ImageShape] | None:
        """Of all its images; None: they are alike."""
        if all(batch.shapes is None for batch in self.micro_batches):
            return None
        return [shape for batch in self.micro_batches for shape in batch.shapes or ()]

    @cached_property
    def _places(self) -> list[np.ndarray]:
        """Per micro-batch int64 `[B, S]`: the image row at a position, or -1."""
        places, before = [], 0
        for batch in self.micro_batches:
            is_image = (batch.tokens == self.image_token).cpu().numpy()
            if not is_image.any() and num_images(batch):
                raise ValueError(f"{num_images(batch)} images, but no image token in their micro-batch")
            rows = before + np.cumsum(is_image.ravel()).reshape(is_image.shape) - 1
            places.append(np.where(is_image, rows, -1))
            before += int(is_image.sum())
        return places

    @cached_property
    def num_rows(self) -> int:
        """Image tokens of all its micro-batches."""
        return sum(int((places >= 0).sum()) for places in self._places)

    @cached_property
    def merging_ranks(self) -> tuple[int, ...]:
        """Ranks of the LLM's first stage, which put image rows in their places."""
        return self.layout.llm.select(pp=0, dp=self.replica)

    def merged(self, rank: int) -> list[np.ndarray]:
        """Per micro-batch: the rows that a rank puts in their places, in the order of its own positions."""
        grid, split = self.layout.llm, self.layout.sequence_parallel
        found = []
        for places in self._places:
            positions = sequence_slice(grid, rank, places.shape[1], sequence_parallel=split)
            local = places[:, positions].ravel()
            found.append(local[local >= 0])
        return found

    def encoded(self, component: str) -> dict[int, np.ndarray]:
        """Images that each rank of an encoder component takes, ascending; a rank without any may be missing."""
        grid = self.layout.grid(component)
        assert grid is not None
        planned = self._encoders if grid == self.layout.vision else None
        if planned is None:
            patches = None if self.shapes is None else sizes(self.shapes, "patches")
            ranges = image_shares(self.layout, component, self.replica, self.num_images, patches)
            shares = {encoder: np.arange(share.start, share.stop) for encoder, share in ranges.items()}
        else:
            shares = {int(encoder): np.flatnonzero(planned == encoder) for encoder in np.unique(planned)}
        return {rank: share for encoder, share in shares.items() for rank in grid.replicas[encoder]}

    @cached_property
    def _encoders(self) -> np.ndarray | None:
        """Planned encoder replica of each image; None: no plan."""
        plans = [batch.image_plan for batch in self.micro_batches]
        found = [plan.encoders for plan in plans if plan is not None and plan.encoders is not None]
        return np.concatenate(found) if found else None

    @cached_property
    def held(self) -> np.ndarray:
        """Images whose pixels this rank has read, in the order in which they are stored."""
        parts, before = [], 0
        for batch in self.micro_batches:
            held = np.arange(num_images(batch)) if batch.image_plan is None else batch.image_plan.held
            parts.append(before + held)
            before += num_images(batch)
        return np.concatenate(parts)

    @cached_property
    def _row_counts(self) -> np.ndarray:
        """int64 `[images]`."""
        if self.shapes is None:
            return np.full(self.num_images, self.num_rows // max(1, self.num_images), np.int64)
        counts = sizes(self.shapes, "tokens")
        if counts.sum() != self.num_rows:
            raise ValueError(f"{len(counts)} images of {counts.sum()} tokens, but {self.num_rows} image tokens")
        return counts

    def pixels(self, images: np.ndarray) -> torch.Tensor:
        """Of some images, which this rank has read: `[n, 3, height, width]`, or their rows one after another."""
        stored = torch.cat([batch.images for batch in self.micro_batches if len(batch.images)])
        places = np.searchsorted(self.held, images)
        assert np.array_equal(self.held[places], images), "an image that this rank is to encode was not read"
        if len(places) == len(self.held):
            return stored
        if self.shapes is not None:
            places = expand(places, sizes([self.shapes[i] for i in self.held], "pixels"))
        return stored[torch.from_numpy(places)]

    @cached_property
    def to_llm(self) -> list[Transfer]:
        """Embeddings, from the ranks that made them to those that merge them."""
        return plan_transfers(self._made, self._merged)

    @cached_property
    def to_encoder(self) -> list[Transfer]:
        """Their gradients, each row's once to every rank that needs it."""
        return plan_transfers(self._merged, self._made)

    @cached_property
    def _made(self) -> dict[int, np.ndarray]:
        return {rank: expand(images, self._row_counts) for rank, images in self.encoded("projector").items()}

    @cached_property
    def _merged(self) -> dict[int, np.ndarray]:
        known: dict[tuple[int, ...], np.ndarray] = {}
        found = {}
        for rank in self.merging_ranks:
            key = _slice_key(self.layout.llm, rank, self.layout.sequence_parallel)
            if key not in known:
                known[key] = np.concatenate(self.merged(rank))
            found[rank] = known[key]
        return found

    def between_encoders(self, *, back: bool) -> list[Transfer]:
        """Features, from the vision encoder's ranks to the projector's; or their gradients back.

        What travels is whole images where they are alike, else rows.
        """
        ends = [self.encoded(name) for name in ("vision", "projector")]
        if self.shapes is not None:
            counts = sizes(self.shapes, "features")
            ends = [{rank: expand(images, counts) for rank, images in end.items()} for end in ends]
        return plan_transfers(*(reversed(ends) if back else ends))


def num_images(batch: Inputs) -> int:
    """Images of a micro-batch, whoever holds them."""
    if batch.image_plan is not None:
        return batch.image_plan.total
    return len(batch.images) if batch.shapes is None else len(batch.shapes)


def _slice_key(grid: Grid, rank: int, sequence_parallel: bool) -> tuple[int, ...]:
    place = grid.place(rank)
    assert place is not None
    return (place.cp, place.tp) if sequence_parallel else (place.cp,)


class Window:
    """Micro-batches of all LLM replicas that a rank works on, and their images.

    Args:
        layout: Of the run.
        micro_batches: By LLM replica.
        image_token: Id of the image placeholder.
    """

    def __init__(self, layout: Layout, micro_batches: Mapping[int, Sequence[Inputs]], image_token: int) -> None:
        self.images = {
            replica: ReplicaImages(layout, replica, batches, image_token)
            for replica, batches in sorted(micro_batches.items())
        }

    def pixels(self, rank: int) -> dict[int, torch.Tensor]:
        """Images that a rank of the vision encoder takes, `[n, 3, height, width]` by LLM replica; none: no entry."""
        shares = {replica: images.encoded("vision").get(rank) for replica, images in self.images.items()}
        return {
            replica: self.images[replica].pixels(share)
            for replica, share in shares.items()
            if share is not None and len(share)
        }

    def shapes(self, component: str, rank: int) -> dict[int, list[ImageShape]] | None:
        """Images that a rank of an encoder component takes, by LLM replica; None: all are alike."""
        found = {}
        for replica, images in self.images.items():
            if images.shapes is None:
                continue
            found[replica] = [images.shapes[i] for i in images.encoded(component).get(rank, ())]
        return found or None
