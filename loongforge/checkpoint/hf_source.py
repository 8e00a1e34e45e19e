"""Where one component's weights are in a Hugging Face folder: found, checked, and read as this rank's shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from loongforge.checkpoint.hf_folder import DTYPES, HFFolder
from loongforge.components.hf import NameMap, Rule
from loongforge.components.sharding import Shard, is_padded


@dataclass
class Finding:
    """What a rank's check of its shards against a folder came to; ranks add theirs up."""

    problems: list[str] = field(default_factory=list)
    taken: dict[str, str] = field(default_factory=dict)
    """Bare name -> the name in the folder."""
    grown: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Name in the folder -> rows there and here."""

    def add(self, other: Finding) -> None:
        """Takes over another rank's."""
        self.problems += [line for line in other.problems if line not in self.problems]
        self.taken.update(other.taken)
        self.grown.update(other.grown)


class HFSource:
    """One component in a folder.

    Args:
        folder: Where its tensors are.
        names: Their names there.
        component: `vision`, `projector` or `llm`, for messages.
        rows: The vocabulary that `config.json` states; None: it states none.
        required: Shapes, by bare name, of what is kept aside and has to be there as `config.json` says.
    """

    def __init__(
        self,
        folder: HFFolder,
        names: NameMap,
        component: str,
        rows: int | None = None,
        required: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.folder, self.names, self.component, self.rows = folder, names, component, rows
        self.required = dict(required or {})

    def spellings(self, bare: str) -> list[str]:
        """Every name under which the folder may hold a tensor of a kind that only has one in a layer."""
        rule = next((rule for rule in self.names.rules if bare in rule.theirs), None)
        return self.names.spellings(bare, rule)

    def find(self, bare: str, rule: Rule) -> str | None:
        """The name under which the folder holds a tensor."""
        spellings = self.names.spellings(bare, rule)
        return next((name for name in spellings if name in self.folder.tensors), None)

    def check(self, shards: Iterable[Shard]) -> Finding:
        """Looks for every tensor that a rank's shards are made of, and compares shapes, reading no weights."""
        finding = Finding()
        for shard in shards:
            rule, _ = self.names.find(shard.name)
            expected = rule.split(torch.empty(shard.shape, device="meta"))
            for bare, part in zip(self.names.bare_names(shard.name), expected, strict=True):
                self._check_one(finding, bare, rule, part.shape)
        return finding

    def _check_one(self, finding: Finding, bare: str, rule: Rule, wanted: torch.Size) -> None:
        name = self.find(bare, rule)
        if name is None:
            finding.problems.append(f"{self.folder.main_file} has no tensor '{self.likely(bare, rule)}'")
            return
        finding.taken[bare] = name
        stored = self.folder.tensors[name]
        where = f"{stored.file}: tensor '{name}'"
        if stored.dtype not in DTYPES:
            finding.problems.append(f"{where} has type {stored.dtype}; read are {', '.join(DTYPES)}")
        if stored.shape == tuple(wanted):
            return
        grows = bare in self.names.growing and len(stored.shape) == 2 and stored.shape[1:] == tuple(wanted[1:])
        if grows and self.rows not in (None, stored.shape[0]):
            finding.problems.append(
                f"{where} has shape {list(stored.shape)}, but config.json says vocab_size={self.rows}"
            )
            return
        if grows and stored.shape[0] < wanted[0]:
            finding.grown[name] = stored.shape[0], wanted[0]
            return
        hint = "; a vocabulary can grow, not shrink" if grows else ""
        finding.problems.append(f"{where} has shape {list(stored.shape)}, the recipe makes it {list(wanted)}{hint}")

    def likely(self, bare: str, rule: Rule | None = None) -> str:
        """The name that a missing tensor would have, in the spelling of those that are there."""
        spellings = self.names.spellings(bare, rule)
        heads = {name: name.removesuffix(bare) for name in spellings}
        used = (n for n, head in heads.items() if head and any(t.startswith(head) for t in self.folder.tensors))
        return next(used, spellings[0])

    @torch.no_grad()
    def fill(self, shards: Iterable[Shard]) -> Iterator[int]:
        """Reads a rank's shards, one after another in the order of the files; yields the bytes of each."""
        found = [(shard, *self.names.find(shard.name)) for shard in shards]
        for shard, rule, _ in sorted(found, key=lambda entry: self._place(entry[0], entry[1])):
            shard.param.copy_(self._shard(shard, rule))
            yield shard.param.numel() * shard.param.element_size()
        self.folder.close()

    def _place(self, shard: Shard, rule: Rule) -> tuple[str, int]:
        name = self.find(self.names.bare_names(shard.name)[0], rule)
        stored = self.folder.tensors[name or ""]
        return str(stored.file), stored.start

    def full(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Our full tensor of a global name, rows of a grown vocabulary included."""
        rule, _ = self.names.find(name)
        pieces = self._pieces(name, rule)
        if self._grows(pieces, shape):
            return self._rows(pieces[0], 0, shape[0])
        return rule.join([self.folder.read(piece) for piece in pieces])

    def dtype(self, name: str) -> torch.dtype:
        """Of the first tensor that makes up ours of a global name."""
        rule, _ = self.names.find(name)
        return DTYPES[self.folder.tensors[self._pieces(name, rule)[0]].dtype]

    def _pieces(self, name: str, rule: Rule) -> list[str]:
        return [found for bare in self.names.bare_names(name) if (found := self.find(bare, rule))]

    def _grows(self, pieces: list[str], shape: tuple[int, ...]) -> bool:
        stored = self.folder.tensors[pieces[0]].shape
        return len(pieces) == 1 and len(shape) == len(stored) == 2 and stored[0] < shape[0]

    def _shard(self, shard: Shard, rule: Rule) -> torch.Tensor:
        pieces = self._pieces(shard.name, rule)
        if is_padded(shard.param) or (self._grows(pieces, shard.shape) and shard.axis == 0):
            count = shard.param.shape[0]
            first = shard.rank * count
            rows = self._rows(pieces[0], first, max(0, min(count, shard.shape[0] - first)))
            return torch.cat([rows, rows.new_zeros(count - len(rows), rows.shape[1])])
        # parts of stacked tensors make up a part of ours where ours divides each of them on its own
        if shard.axis is None or not rule.reads_parts(shard.tp) or (rule.join is torch.cat and not shard.gated):
            return shard.take(self.full(shard.name, shard.shape))
        place = {"axis": shard.axis, "part": shard.rank, "parts": shard.tp}
        return rule.join([self.folder.read(name, **place) for name in pieces])

    def _rows(self, name: str, first: int, count: int) -> torch.Tensor:
        """Rows of a grown vocabulary: those of new tokens are the mean of all old ones."""
        stored = self.folder.tensors[name]
        old, width = stored.shape
        result = torch.empty(count, width, dtype=DTYPES[stored.dtype])
        kept = max(0, min(count, old - first))
        if kept:
            result[:kept] = self.folder.read_range(name, 0, first, kept)
        if kept < count:
            result[kept:] = self._mean_row(name)
        return result

    def _mean_row(self, name: str) -> torch.Tensor:
        rows, width = self.folder.tensors[name].shape
        total, step = torch.zeros(width, dtype=torch.float64), max(1, (16 << 20) // max(1, 8 * width))
        for row in range(0, rows, step):
            total += self.folder.read_range(name, 0, row, min(step, rows - row)).double().sum(0)
        return total / rows
