"""Which replica and micro-batch takes each sample of a global batch: a pure function of their metadata. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from loongforge.data.balance import BatchMetadata, CostModel, pack, plan
from loongforge.parallel.images import ImageShape, sizes, total


@dataclass(frozen=True)
class Load:
    """What is to be known of a sample."""

    text_tokens: int
    images: tuple[tuple[ImageShape, ...], ...] = ()
    """What the encoder sees of each of its images: tiles."""

    @property
    def shapes(self) -> list[ImageShape]:
        """Of all that the encoder sees."""
        return [shape for tiles in self.images for shape in tiles]

    @property
    def tokens(self) -> int:
        """With those of its images."""
        return self.text_tokens + total(self.shapes, "tokens")


@dataclass(frozen=True)
class Rules:
    """What decides an arrangement besides the samples."""

    replicas: int
    """Of the LLM: they divide the samples."""
    encoders: int
    """Replicas of the vision encoder; 0 without one."""
    token_budget: int
    """Tokens of a micro-batch at most."""
    mode: str = "none"
    """See `BalanceConfig.mode`."""
    objective: str = "one_barrier"
    """See `BalanceConfig.objective`, without `auto`."""
    cost: CostModel = field(default_factory=CostModel)
    patch_cap: int | None = None
    """Patches that an encoder replica takes in a micro-batch at most."""

    @property
    def cell_patches(self) -> int | None:
        """Patches of an LLM replica's micro-batch at most; fewer encoders than that take those of several."""
        if self.patch_cap is None or not 0 < self.encoders < self.replicas:
            return self.patch_cap
        return self.patch_cap // -(-self.replicas // self.encoders)


@dataclass(frozen=True)
class Arrangement:
    """A global batch, divided."""

    cells: list[list[list[int]]]
    """Samples (numbers in the global batch) by replica and micro-batch; every replica has as many micro-batches."""
    encoders: list[np.ndarray] | None
    """Encoder replica of each image that the encoder sees, by sample; None: they are encoded where their sample is, in
    even shares."""

    @property
    def fingerprint(self) -> int:
        """32 bits that differ where arrangements differ, to be compared between ranks."""
        parts = [np.asarray([len(cell), *cell], np.int64) for row in self.cells for cell in row]
        return crc32(np.concatenate([*parts, *(self.encoders or [])]).astype(np.int64).tobytes())


def arrange(samples: Sequence[Load], rules: Rules) -> Arrangement:
    """Divides a global batch.

    Args:
        samples: Metadata by number.
        rules: Budget, layout and costs.

    Raises:
        ValueError: a sample alone exceeds a cap.
    """
    lengths = np.array([load.tokens for load in samples], np.int64)
    if rules.mode == "none":
        patches = np.array([total(load.shapes, "patches") for load in samples], np.int64)
        return Arrangement(_spread(lengths, patches, rules), None)
    return _planned(samples, lengths, rules)


def _spread(lengths: np.ndarray, patches: np.ndarray, rules: Rules) -> list[list[list[int]]]:
    """Packs as full as they go, dealt out in turn."""
    bins = pack(lengths, rules.token_budget, patches if rules.cell_patches else None, rules.cell_patches)
    packs: list[list[int]] = [[] for _ in range(int(bins.max()) + 1)]
    for number, chosen in enumerate(bins.tolist()):
        packs[chosen].append(number)
    while len(packs) % rules.replicas:
        packs.append(_half(packs))
    return [packs[replica :: rules.replicas] for replica in range(rules.replicas)]


def _half(packs: list[list[int]]) -> list[int]:
    """Every second sample of the pack with most of them; nothing where none has two."""
    largest = max(range(len(packs)), key=lambda number: len(packs[number]))
    taken = packs[largest][1::2]
    packs[largest] = packs[largest][::2]
    return taken


def _planned(samples: Sequence[Load], lengths: np.ndarray, rules: Rules) -> Arrangement:
    images = [tiles for load in samples for tiles in load.images]
    metadata = BatchMetadata(
        text_tokens=np.array([load.text_tokens for load in samples], np.int64),
        image_offsets=np.cumsum([0, *(len(load.images) for load in samples)]),
        image_units=np.array([len(tiles) for tiles in images], np.int64),
        patches_per_unit=np.array([tiles[0].patches for tiles in images], np.int64),
        image_tokens=np.array([total(tiles, "tokens") for tiles in images], np.int64),
    )
    number = -(-int(lengths.sum()) // (rules.replicas * rules.token_budget))
    while True:
        try:
            found = plan(
                metadata,
                ranks=rules.replicas,
                micro_batches=number,
                cost=rules.cost,
                objective=rules.objective,
                token_cap=rules.token_budget,
                patch_cap=rules.cell_patches,
            )
            break
        except ValueError:
            if number >= len(samples):  # one sample in each cell, and still too large
                raise
            number += 1
    cells: list[list[list[int]]] = [[[] for _ in range(number)] for _ in range(rules.replicas)]
    for sample, (rank, micro_batch) in enumerate(zip(found.rank.tolist(), found.micro_batch.tolist(), strict=True)):
        cells[rank][micro_batch].append(sample)
    if rules.mode != "full" or not rules.encoders:
        return Arrangement(cells, None)
    if found.encoder_rank is not None and rules.encoders == rules.replicas:
        counts = [len(load.shapes) for load in samples]
        return Arrangement(cells, np.split(found.encoder_rank.astype(np.int64), np.cumsum(counts)[:-1]))
    patches = [sizes(load.shapes, "patches") for load in samples]
    return Arrangement(cells, _even_encoders(cells, patches, rules.encoders))


def _even_encoders(cells: list[list[list[int]]], patches: list[np.ndarray], encoders: int) -> list[np.ndarray]:
    """Images of each micro-batch in runs of as many patches, in the order of replicas, so that most are encoded near
    their sample."""
    found = [np.zeros(len(part), np.int64) for part in patches]
    for micro_batch in range(len(cells[0])):
        order = [sample for row in cells for sample in row[micro_batch]]
        whole, before = sum(int(patches[sample].sum()) for sample in order), 0
        for sample in order:
            starts = before + np.cumsum(patches[sample]) - patches[sample]
            found[sample] = starts * encoders // max(whole, 1)
            before += int(patches[sample].sum())
    return found
