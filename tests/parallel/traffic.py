"""What may travel between ranks in a training step, worked out by hand for some layouts. No torch here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.parallel.matrix import Choice

Chunks = tuple[int, ...]
ALL: Chunks = (0, 1, 2, 3)
TOLERANCE = 1e-3
UNKNOWN = -1


@dataclass(frozen=True)
class Case:
    """A layout of four ranks, with what its users would expect of it."""

    choice: Choice
    merging: tuple[dict[int, Chunks], ...]
    """Per LLM replica: the ranks that embed its samples, and which quarters of a sample's tokens each of them has."""
    encoding: tuple[tuple[tuple[int, ...], ...], ...]
    """Per LLM replica: the encoder replicas among which its images are divided, each by its ranks."""
    projecting: tuple[tuple[tuple[int, ...], ...], ...] | None = None
    """The same of the projector; None: as the encoder."""
    window: int | None = None
    """Micro-batches that are encoded together."""

    def replica_of(self, rank: int) -> int | None:
        """The LLM replica whose samples a rank embeds."""
        return next((replica for replica, ranks in enumerate(self.merging) if rank in ranks), None)


@dataclass
class Tables:
    """Everything that can travel in a step, a line for each: of one process with the whole batch."""

    features: np.ndarray
    """`[images, P * width]`"""
    feature_grads: np.ndarray
    rows: np.ndarray
    """`[images * P, H]`"""
    row_grads: np.ndarray


@dataclass
class Seen:
    """What a rank saw in a step."""

    messages: list[tuple[str, int, int, int, int]] = field(default_factory=list)
    """What it was told: way, source, target, rows, bytes."""
    sent: list[tuple[int, int]] = field(default_factory=list)
    """What really left: target, bytes."""
    received: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    """What really came: source, dimensions, values `[n, ...]`."""
    collectives: list[str] = field(default_factory=list)
    """Names of calls that join ranks of several components."""
    encoded: list[np.ndarray] = field(default_factory=list)
    projected: list[np.ndarray] = field(default_factory=list)
    merged: list[np.ndarray | None] = field(default_factory=list)
    """Image rows of each micro-batch that it embedded."""


@dataclass
class Layer:
    """Where a kind of things comes from and where it is needed."""

    made: dict[int, list[int]]
    """Numbers of the things that each rank makes."""
    needed: dict[int, list[int]]
    got: dict[int, list[tuple[int, int]]]
    """Source and number of all that reached each rank."""

    def problems(self, what: str) -> list[str]:
        """Things that came not at all, twice, without being needed, or by way of others."""
        makers = defaultdict(set)
        for rank, numbers in self.made.items():
            for number in numbers:
                makers[number].add(rank)
        found = []
        for rank in self.needed:
            missing = set(self.needed[rank]) - set(self.made[rank])
            times = Counter(number for _, number in self.got[rank])
            found += [f"{what} {n} did not reach rank {rank}" for n in sorted(missing) if not times[n]]
            found += [f"{what} {n} reached rank {rank} {t} times" for n, t in times.items() if n in missing and t > 1]
            found += [f"{what} {n} is not needed on rank {rank}" for n in times if n not in missing]
            passed_on = {(n, source) for source, n in self.got[rank] if n >= 0 and source not in makers[n]}
            found += [f"{what} {n} reached rank {rank} by way of rank {via}" for n, via in sorted(passed_on)]
        return found


def numbers_of(found: np.ndarray, table: np.ndarray) -> list[int]:
    """Which line of a table each line is; `UNKNOWN` where none or several are alike."""
    if not len(found) or not len(table):
        return [UNKNOWN] * len(found)
    lengths = np.linalg.norm(table, axis=1) + 1e-30
    distances = np.linalg.norm(found[:, None] - table[None], axis=2) / lengths
    nearest = distances.argmin(1)
    alike = (distances < 10 * TOLERANCE).sum(1)
    return [
        int(n) if distances[i, n] < TOLERANCE and alike[i] == 1 else UNKNOWN for i, n in enumerate(nearest.tolist())
    ]


class Examination:
    """A step under a layout.

    Args:
        case: The layout.
        samples: Positions of the image tokens of each sample of the global batch.
        length: Tokens of a sample, with padding.
        tables: Of the step.
        frozen: Components that do not train.
        ranks: What each rank saw.
    """

    def __init__(
        self,
        case: Case,
        samples: Sequence[Sequence[int]],
        length: int,
        tables: Tables,
        frozen: Sequence[str],
        ranks: Sequence[Seen],
    ) -> None:
        self.case, self.samples, self.length, self.ranks, self.frozen = case, samples, length, ranks, frozen
        self.tables, self.per_image = tables, len(tables.rows) // max(1, len(tables.features))
        self.first_row = [0, *np.cumsum([len(positions) for positions in samples]).tolist()]
        self.merged = {rank: self._merges(rank) for rank in range(len(ranks))}
        self.encoded = {r: self._numbers(seen.encoded, tables.features) for r, seen in enumerate(ranks)}
        self.projected = {r: self._numbers(seen.projected, tables.rows) for r, seen in enumerate(ranks)}
        self.arrivals = [self._arrivals(seen) for seen in ranks]

    @staticmethod
    def _numbers(parts: Sequence[np.ndarray], table: np.ndarray) -> list[int]:
        return [number for found in parts for number in numbers_of(found, table)]

    def _replica(self, sample: int) -> int:
        return sample // self.case.choice.micro_batch_size % len(self.case.merging)

    def _merges(self, rank: int) -> list[list[int]]:
        """Image rows that a rank puts in place, per micro-batch."""
        replica, size = self.case.replica_of(rank), self.case.choice.micro_batch_size
        if replica is None:
            return []
        quarters = self.case.merging[replica][rank]
        batches: dict[int, list[int]] = {i // size: [] for i in range(len(self.samples)) if self._replica(i) == replica}
        for sample, positions in enumerate(self.samples):
            if self._replica(sample) == replica:
                here = [n for n, at in enumerate(positions) if at * 4 // self.length in quarters]
                batches[sample // size] += [self.first_row[sample] + n for n in here]
        return list(batches.values())

    def _arrivals(self, seen: Seen) -> list[tuple[str, str, int, list[int], int]]:
        """Way, kind, source, numbers and bytes of what came."""
        known = {
            "features": (3, self.tables.features, self.tables.feature_grads),
            "rows": (2, self.tables.rows, self.tables.row_grads),
        }
        found = []
        for source, dimensions, values in seen.received:
            kind = "features" if dimensions == known["features"][0] else "rows"
            there, back = (numbers_of(values, table) for table in known[kind][1:])
            way = "forward" if there.count(UNKNOWN) <= back.count(UNKNOWN) else "backward"
            found.append((way, kind, source, there if way == "forward" else back, values.nbytes))
        return found

    def _got(self, way: str, kind: str) -> dict[int, list[tuple[int, int]]]:
        return {
            rank: [(m[2], number) for m in arrivals if m[:2] == (way, kind) for number in m[3]]
            for rank, arrivals in enumerate(self.arrivals)
        }

    def problems(self) -> list[str]:
        """Everything that is not as it should be."""
        apart = self.case.projecting is not None
        merged = {rank: [row for rows in parts for row in rows] for rank, parts in self.merged.items()}
        taken = {rank: sorted({row // self.per_image for row in rows}) for rank, rows in self.projected.items()}
        nothing: dict[int, list[int]] = {rank: [] for rank in range(len(self.ranks))}
        learned = {
            "rows": nothing if {"vision", "projector"} <= set(self.frozen) else self.projected,
            "features": nothing if "vision" in self.frozen or not apart else self.encoded,
        }
        layers = {
            "row": Layer(self.projected, merged, self._got("forward", "rows")),
            "gradient of row": Layer(merged, learned["rows"], self._got("backward", "rows")),
            "image": Layer(self.encoded, taken if apart else nothing, self._got("forward", "features")),
            "gradient of image": Layer(taken, learned["features"], self._got("backward", "features")),
        }
        found = [problem for what, layer in layers.items() for problem in layer.problems(what)]
        return found + self._work() + self._places() + self._accounts()

    def _work(self) -> list[str]:
        """Every image is taken by all ranks of one encoder replica that serves its sample, and by no other."""
        found = []
        projecting = self.case.projecting or self.case.encoding
        rows = {rank: sorted(rows) for rank, rows in self.projected.items()}
        for sample, positions in enumerate(self.samples):
            replica = self._replica(sample)
            for row in range(self.first_row[sample], self.first_row[sample] + len(positions)):
                at = tuple(rank for rank, held in rows.items() for _ in range(held.count(row)))
                if at not in projecting[replica]:
                    found.append(f"row {row} is projected on ranks {at}")
                image = row // self.per_image
                at = tuple(rank for rank, held in self.encoded.items() for _ in range(held.count(image)))
                if at not in self.case.encoding[replica]:
                    found.append(f"image {image} is encoded on ranks {at}")
        return found

    def _places(self) -> list[str]:
        """Every rank puts its rows where they belong."""
        found = []
        for rank, seen in enumerate(self.ranks):
            parts = [[] if part is None else numbers_of(part, self.tables.rows) for part in seen.merged]
            if parts != self.merged[rank]:
                found.append(f"rank {rank} merges {parts}, not {self.merged[rank]}")
        return found

    def _accounts(self) -> list[str]:
        """What was told is what came and what was sent, and nothing else joined ranks of several components."""
        told, came, left = Counter[object](), Counter[object](), Counter[object]()
        found = []
        for rank, seen in enumerate(self.ranks):
            for way, source, target, rows, size in seen.messages:
                told[way, source, target] += size
                found += [f"a message to rank {target} was told to rank {rank}"] if target != rank else []
                found += [f"{rows} rows in {size} bytes"] if size not in self._sizes(rows) else []
            for way, _, source, _, size in self.arrivals[rank]:
                came[way, source, rank] += size
            for target, size in seen.sent:
                left[rank, target] += size
            found += [f"rank {rank} joins others in {name}" for name in sorted(set(seen.collectives))]
        if told != came:
            found.append(f"told {dict(told)}, but {dict(came)} came")
        by_pair = Counter[object]()
        for (_, source, target), size in came.items():  # type: ignore[misc]
            by_pair[source, target] += size
        if by_pair != left:
            found.append(f"{dict(left)} left, but {dict(by_pair)} came")
        return found

    def _sizes(self, rows: int) -> Mapping[int, str]:
        """Bytes that so many rows, or whole images, may take: their float32 numbers and nothing else."""
        return {
            rows * 4 * self.tables.rows.shape[1]: "rows",
            rows * 4 * self.tables.features.shape[1]: "features",
        }

    def bytes(self, way: str, *, kept: bool = False) -> int:
        """Bytes that were told; with those that stayed on their rank."""
        width = 4 * self.tables.rows.shape[1]
        merged = {rank: {row for rows in parts for row in rows} for rank, parts in self.merged.items()}
        here = sum(len(merged[rank] & set(rows)) for rank, rows in self.projected.items()) * width if kept else 0
        return here + sum(m[4] for seen in self.ranks for m in seen.messages if m[0] == way)
