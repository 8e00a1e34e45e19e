"""Which replica and micro-batch takes each sample of a global batch: a pure function of their metadata. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from loongforge.data.balance import BatchMetadata, CostModel, pack, plan


@dataclass(frozen=True)
class Load:
    """What is to be known of a sample."""

    text_tokens: int
    units: tuple[int, ...] = ()
    """Images that the encoder sees of each of its images: tiles."""


@dataclass(frozen=True)
class Rules:
    """What decides an arrangement besides the samples."""

    replicas: int
    """Of the LLM: they divide the samples."""
    encoders: int
    """Replicas of the vision encoder; 0 without one."""
    token_budget: int
    """Tokens of a micro-batch at most."""
    image_tokens: int = 0
    """LLM tokens of an image that the encoder sees."""
    patches: int = 1
    """Its patches."""
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
        return self.patch_cap * self.encoders // self.replicas

    def length(self, sample: Load) -> int:
        """Tokens of a sample, those of its images included."""
        return sample.text_tokens + sum(sample.units) * self.image_tokens


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
    counts = np.array([sum(load.units) for load in samples], np.int64)
    lengths = np.array([rules.length(load) for load in samples], np.int64)
    if rules.mode == "none":
        return Arrangement(_spread(lengths, counts * rules.patches, rules), None)
    return _planned(samples, lengths, counts, rules)


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


def _planned(samples: Sequence[Load], lengths: np.ndarray, counts: np.ndarray, rules: Rules) -> Arrangement:
    units = np.array([number for load in samples for number in load.units], np.int64)
    metadata = BatchMetadata(
        text_tokens=np.array([load.text_tokens for load in samples], np.int64),
        image_offsets=np.cumsum([0, *(len(load.units) for load in samples)]),
        image_units=units,
        patches_per_unit=np.full(len(units), rules.patches, np.int64),
        image_tokens=units * rules.image_tokens,
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
        return Arrangement(cells, np.split(found.encoder_rank.astype(np.int64), np.cumsum(counts)[:-1]))
    return Arrangement(cells, _even_encoders(cells, counts, rules.encoders))


def _even_encoders(cells: list[list[list[int]]], counts: np.ndarray, encoders: int) -> list[np.ndarray]:
    """Images of each micro-batch in even runs, in the order of replicas, so that most are encoded near their sample."""
    found = [np.zeros(count, np.int64) for count in counts.tolist()]
    for micro_batch in range(len(cells[0])):
        order = [sample for row in cells for sample in row[micro_batch]]
        total, before = int(counts[order].sum()), 0
        for sample in order:
            places = np.arange(before, before + counts[sample])
            found[sample] = places * encoders // max(total, 1)
            before += int(counts[sample])
    return found
