"""Rules that map a component's parameters to Hugging Face names and back.

A rule joins one or more tensors of a Hugging Face checkpoint into one full tensor of ours, and splits ours again.
Both directions are linear, so they hold for gradients as well as for weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

Tensors = list[torch.Tensor]


def _one(tensors: Tensors) -> torch.Tensor:
    return tensors[0]


def _same(tensor: torch.Tensor) -> Tensors:
    return [tensor]


@dataclass(frozen=True)
class Rule:
    """One parameter of ours and its counterpart; `{i}` stands for the layer index in both."""

    ours: str
    theirs: tuple[str, ...]
    join: Callable[[Tensors], torch.Tensor] = _one
    split: Callable[[torch.Tensor], Tensors] = _same
    prefixes: tuple[str, ...] | None = None
    """What may stand before their names, where it differs from the other rules'."""

    def match(self, name: str) -> dict[str, str] | None:
        """The layer index, where `name` is a parameter of this rule."""
        pattern = re.escape(self.ours).replace(re.escape("{i}"), r"(?P<i>\d+)")
        found = re.fullmatch(pattern, name)
        return found.groupdict() if found else None


def stacked(ours: str, theirs: Iterable[str]) -> Rule:
    """Theirs are stacked along the first axis in equal parts (gate and up projection)."""
    names = tuple(theirs)
    return Rule(ours, names, join=torch.cat, split=lambda t: list(t.chunk(len(names))))


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
        parts = [t.reshape(groups, -1, *t.shape[1:]) for t in tensors]
        return torch.cat(parts, 1).flatten(0, 1)

    def split(tensor: torch.Tensor) -> Tensors:
        by_group = tensor.reshape(groups, (per_group + 2) * head, *tensor.shape[1:])
        return [part.flatten(0, 1) for part in by_group.split([per_group * head, head, head], 1)]

    return Rule(ours, theirs, join, split)


class NameMap:
    """All rules of one component.

    Args:
        rules: One for each parameter.
        prefixes: What may stand before their names in a checkpoint, e.g. `vision_tower.` in LLaVA's; tried in order.
    """

    def __init__(self, rules: Iterable[Rule], prefixes: Iterable[str] = ("",)) -> None:
        self.rules = list(rules)
        self.prefixes = list(prefixes)

    def _find(self, name: str) -> tuple[Rule, dict[str, str]]:
        for rule in self.rules:
            index = rule.match(name)
            if index is not None:
                return rule, index
        raise KeyError(f"no Hugging Face counterpart is known for parameter {name!r}")

    def _candidates(self, rule: Rule, theirs: str) -> list[str]:
        return [prefix + theirs for prefix in rule.prefixes or self.prefixes]

    def sources(self, name: str) -> list[list[str]]:
        """For each tensor that makes up our parameter `name`: every name under which a checkpoint may hold it."""
        rule, index = self._find(name)
        return [self._candidates(rule, theirs.format(**index)) for theirs in rule.theirs]

    def full_tensor(self, name: str, get: Callable[[list[str]], torch.Tensor]) -> torch.Tensor:
        """Our full tensor; `get` reads one of theirs, given its candidate names."""
        rule, _ = self._find(name)
        return rule.join([get(candidates) for candidates in self.sources(name)])

    def split(self, name: str, full: torch.Tensor) -> Tensors:
        """Their tensors of our parameter `name`, in the order of `sources`."""
        return self._find(name)[0].split(full)

    def join(self, name: str, theirs: Tensors) -> torch.Tensor:
        """Our full tensor of theirs; inverse of `split`."""
        return self._find(name)[0].join(theirs)

    def to_hf(self, full: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Full tensors by our global names -> tensors by their names, under the first prefix."""
        result = {}
        for name, tensor in full.items():
            rule, _ = self._find(name)
            for candidates, part in zip(self.sources(name), rule.split(tensor), strict=True):
                result[candidates[0]] = part
        return result
