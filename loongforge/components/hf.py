"""Rules that map a component's parameters to Hugging Face names and back.

A rule joins one or more tensors of a Hugging Face checkpoint into one full tensor of ours, and splits ours again.
Both directions are linear, so they hold for gradients as well as for weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch

Tensors = list[torch.Tensor]


def _one(tensors: Tensors) -> torch.Tensor:
    return tensors[0]


def _same(tensor: torch.Tensor) -> Tensors:
    return [tensor]


@dataclass(frozen=True)
class Rule:
    """One parameter of ours and its counterpart; `{i}` stands for the layer index in both, `{e}` for an expert's."""

    ours: str
    theirs: tuple[str, ...]
    """Bare names, as a checkpoint of the component alone has them, without what `NameMap.prefixes` says."""
    join: Callable[[Tensors], torch.Tensor] = _one
    """Works on meta tensors too (shapes are checked with them)."""
    split: Callable[[torch.Tensor], Tensors] = _same
    prefixes: tuple[str, ...] | None = None
    """What may stand before their names, where it differs from the other rules'."""
    by_shard: bool | None = None
    """Whether joining a tensor-parallel rank's part of each of theirs gives that rank's part of ours, so that nothing
    more has to be read; None: where a tensor is taken as it is."""
    units: int | None = None
    """`by_shard` holds for a number of ranks that divides this; None: for any."""

    def reads_parts(self, tp: int) -> bool:
        """`by_shard`, decided for a number of ranks."""
        if self.units is not None and self.units % tp:
            return False
        return self.join is _one if self.by_shard is None else self.by_shard

    def match(self, name: str) -> dict[str, str] | None:
        """The layer index, where `name` is a parameter of this rule."""
        pattern = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(self.ours))
        found = re.fullmatch(pattern, name)
        return found.groupdict() if found else None


def stacked(ours: str, theirs: Iterable[str]) -> Rule:
    """Theirs are stacked along the first axis in equal parts (gate and up projection)."""
    names = tuple(theirs)
    return Rule(ours, names, join=torch.cat, split=lambda t: list(t.chunk(len(names))), by_shard=True)


def grouped_qkv(ours: str, theirs: tuple[str, str, str], *, groups: int, per_group: int, head: int) -> Rule:
    """Query, key and value projections, which megatron-core interleaves by key-value head.

    Args:
        ours: Parameter of `linear_qkv`, first axis `groups * (per_group + 2) * head`.
        theirs: Names of q, k and v.
        groups: Key-value heads.
        per_group: Query heads that share one.
        head: Width of a head.
    """

    def join(tensors: Tensors) -> torch.Tensor:
        parts = [t.reshape(-1, n * head, *t.shape[1:]) for t, n in zip(tensors, (per_group, 1, 1), strict=True)]
        return torch.cat(parts, 1).flatten(0, 1)

    def split(tensor: torch.Tensor) -> Tensors:
        by_group = tensor.reshape(groups, (per_group + 2) * head, *tensor.shape[1:])
        return [part.flatten(0, 1) for part in by_group.split([per_group * head, head, head], 1)]

    return Rule(ours, theirs, join, split, by_shard=True, units=groups)


class NameMap:
    """All rules of one component.

    Args:
        rules: One for each parameter.
        prefixes: What may stand before their names in a checkpoint of the component alone; tried in order, and an
            export writes the first.
        carried: Patterns (regular expressions) of bare names that such checkpoints hold and that are not built here
            (layers above the features, buffers that follow from the config). They are kept aside for an export.
        alone: Patterns of bare names that only a checkpoint of the component alone needs (pooling heads): those are
            not carried from there into a whole model.
        neutral: Shapes, by bare name, of tensors that transformers expects and nothing here depends on: norms, which
            an export makes ones (`weight`) or zeros where none were carried.
        growing: Bare names of tensors with a row for each token, whose number may be raised.
        above: Numbers of layers that such checkpoints hold and that are not built here, as `carried` has them.
        tied: Bare names under which some checkpoints hold a second copy of another bare name's tensor.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        prefixes: Iterable[str] = ("",),
        *,
        carried: Iterable[str] = (),
        alone: Iterable[str] = (),
        neutral: Mapping[str, tuple[int, ...]] | None = None,
        above: Iterable[int] = (),
        tied: Mapping[str, str] | None = None,
        growing: Iterable[str] = (),
    ) -> None:
        self.rules = list(rules)
        self.prefixes = list(prefixes)
        self.carried = list(carried)
        self.alone = list(alone)
        self.neutral = dict(neutral or {})
        self.above = list(above)
        self.tied = dict(tied or {})
        self.growing = frozenset(growing)
        self._within: dict[str, tuple[str, ...]] | None = None

    def within(self, prefixes: Mapping[str, tuple[str, ...]]) -> NameMap:
        """The same rules where the component is part of a whole model.

        Args:
            prefixes: What may stand before bare names, by how these begin: `{"": ("language_model.model.",), "lm_head":
                ("language_model.", "")}`; the longest beginning that fits holds, and an export writes the first prefix.
        """
        rules = [replace(rule, prefixes=_longest(prefixes, rule.theirs[0])) for rule in self.rules]
        found = NameMap(
            rules,
            carried=self.carried,
            alone=self.alone,
            neutral=self.neutral,
            above=self.above,
            tied=self.tied,
            growing=self.growing,
        )
        found._within = dict(prefixes)
        return found

    def find(self, name: str) -> tuple[Rule, dict[str, str]]:
        """The rule of a parameter of ours, and its layer index.

        Raises:
            KeyError: none has one.
        """
        for rule in self.rules:
            index = rule.match(name)
            if index is not None:
                return rule, index
        raise KeyError(f"no Hugging Face counterpart is known for parameter {name!r}")

    def spellings(self, bare: str, rule: Rule | None = None) -> list[str]:
        """Every name under which a checkpoint may hold a tensor; the first is what an export writes."""
        if self._within is not None:
            return [prefix + bare for prefix in _longest(self._within, bare)]
        own = rule.prefixes if rule is not None else None
        return [prefix + bare for prefix in own or self.prefixes]

    def bare_names(self, name: str) -> list[str]:
        """For each tensor that makes up our parameter `name`: its bare name."""
        rule, index = self.find(name)
        return [theirs.format(**index) for theirs in rule.theirs]

    def sources(self, name: str) -> list[list[str]]:
        """For each tensor that makes up our parameter `name`: every name under which a checkpoint may hold it."""
        rule, _ = self.find(name)
        return [self.spellings(bare, rule) for bare in self.bare_names(name)]

    def full_tensor(self, name: str, get: Callable[[list[str]], torch.Tensor]) -> torch.Tensor:
        """Our full tensor; `get` reads one of theirs, given its candidate names."""
        rule, _ = self.find(name)
        return rule.join([get(candidates) for candidates in self.sources(name)])

    def to_hf(self, full: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Full tensors by our global names -> tensors by their names, under the first prefix."""
        result = {}
        for name, tensor in full.items():
            rule, _ = self.find(name)
            for candidates, part in zip(self.sources(name), rule.split(tensor), strict=True):
                result[candidates[0]] = part
        return result

    @property
    def table(self) -> dict[str, tuple[str, ...]]:
        """What may stand before bare names, by how these begin."""
        if self._within is not None:
            return self._within
        own = {rule.theirs[0]: rule.prefixes for rule in self.rules if rule.prefixes}
        return {"": tuple(self.prefixes), **own}

    def carried_name(self, name: str) -> str | None:
        """The bare name of a checkpoint's tensor that is kept aside for an export; None: it is not one."""
        prefixes = {prefix for group in self.table.values() for prefix in group if name.startswith(prefix)}
        for bare in sorted((name.removeprefix(prefix) for prefix in prefixes), key=len):
            if any(re.fullmatch(pattern, bare) for pattern in [*self.carried, *self.alone]):
                return bare
        return None

    def is_alone(self, bare: str) -> bool:
        """Whether a tensor is of no use in a whole model."""
        return any(re.fullmatch(pattern, bare) for pattern in self.alone)


def _longest(prefixes: Mapping[str, tuple[str, ...]], bare: str) -> tuple[str, ...]:
    """What may stand before a bare name."""
    return prefixes[max((start for start in prefixes if bare.startswith(start)), key=len)]
