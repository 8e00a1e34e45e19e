"""Checks of a Hugging Face folder as a whole, before weights are read: nothing is left over, and all of it agrees."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

import torch

from loongforge.checkpoint.hf_folder import HFFolder
from loongforge.checkpoint.hf_source import Finding, HFSource
from loongforge.components.base import FamilyConfig

_NUMBER = re.compile(r"\.\d+\.")
_MOST = 6
"""Problems that one message lists."""


def setting_differences(name: str, ours: FamilyConfig, theirs: FamilyConfig, *, whole: bool, path: object) -> list[str]:
    """Settings of a recipe's component that differ from the checkpoint's.

    Args:
        name: Of the component.
        ours: The recipe's.
        theirs: From `config.json`.
        whole: `config.json` is a whole model's.
        path: The folder, for messages.
    """
    if ours.implementation != theirs.implementation:
        return [f"model.{name}.type={ours.type}, but {path}/config.json describes {theirs.type}"]
    wanted, found = ours.settings(whole=whole), theirs.settings(whole=whole)
    return [
        f"model.{name}.{key}={wanted[key]!r}, but {path}/config.json says {found[key]!r}"
        for key in wanted
        if wanted[key] != found[key]
    ]


def left_over(found: Mapping[str, tuple[HFSource, Finding]], mine: Callable[[str], bool]) -> list[str]:
    """Tensors that no parameter takes and that are not known to be without effect.

    Args:
        found: Sources in one folder and what all ranks found there, by component.
        mine: Whether a tensor has to be one of these components'.
    """
    known: set[str] = set()
    for source, finding in found.values():
        known |= {*finding.taken.values(), *carried(source), *tied_copies(source, finding)}
    source = next(iter(found.values()))[0]
    return [
        f"{stored.file}: tensor '{name}' has no place in the recipe's {' and '.join(found)}"
        for name, stored in source.folder.tensors.items()
        if name not in known and mine(name)
    ]


def carried(source: HFSource) -> dict[str, str]:
    """Names of tensors that are kept aside for an export -> their bare names."""
    names = {name: source.names.carried_name(name) for name in source.folder.tensors}
    return {name: bare for name, bare in names.items() if bare is not None}


def incomplete(source: HFSource, finding: Finding) -> list[str]:
    """Tensors that are missing or of another shape in what is kept aside: layers above the features, a last norm."""
    stored = source.folder.tensors
    aside = {bare: name for name, bare in carried(source).items()}
    layers = {_general(bare): stored[name].shape for bare, name in finding.taken.items() if _general(bare) != bare}
    wanted = {**source.names.neutral, **source.required}
    for number in source.names.above:
        wanted |= {kind.replace("{i}", str(number)): shape for kind, shape in layers.items()}
    missing = [bare for bare in wanted if bare not in aside]
    wrong = {
        aside[bare]: shape for bare, shape in wanted.items() if bare in aside and stored[aside[bare]].shape != shape
    }
    return [f"{source.folder.main_file} has no tensor '{source.likely(bare)}'" for bare in missing] + [
        f"{stored[name].file}: tensor '{name}' has shape {list(stored[name].shape)}, the recipe makes it {list(shape)}"
        for name, shape in wrong.items()
    ]


def tied_copies(source: HFSource, finding: Finding) -> dict[str, str]:
    """Names in the folder that hold a second copy of a tied tensor -> the bare name of the tensor."""
    return {
        name: original
        for alias, original in source.names.tied.items()
        for name in source.spellings(alias)
        if name in source.folder.tensors and original in finding.taken
    }


def untied(source: HFSource, finding: Finding) -> list[str]:
    """Second copies of tied tensors that are no copies."""
    problems = []
    for name, original in tied_copies(source, finding).items():
        first = finding.taken[original]
        if not _equal(source.folder, name, first):
            where = source.folder.tensors[name].file
            problems.append(
                f"{where}: tensor '{name}' differs from '{first}', but the recipe ties the two "
                f"(model.{source.component}.tie_embeddings=true)"
            )
    return problems


def _equal(folder: HFFolder, one: str, other: str) -> bool:
    a, b = folder.tensors[one], folder.tensors[other]
    if a.shape != b.shape or a.dtype != b.dtype or not a.shape:
        return False
    step = max(1, (64 << 20) // max(1, a.nbytes // a.shape[0]))
    return all(
        torch.equal(*(folder.read_range(name, 0, row, min(step, a.shape[0] - row)) for name in (one, other)))
        for row in range(0, a.shape[0], step)
    )


def mixed_types(source: HFSource, finding: Finding) -> list[str]:
    """Tensors of another type than their counterparts in the other layers: a sign of a broken conversion.

    Norms in fp32 beside matrices in bf16, or a tower of another type, are no problem.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for bare, name in finding.taken.items():
        kinds[_kind(source, bare)].append(name)
    for name, bare in carried(source).items():
        kinds[_kind(source, bare)].append(name)
    problems = []
    for names in kinds.values():
        types = {name: source.folder.tensors[name].dtype for name in names}
        if len(set(types.values())) > 1:
            usual = Counter(types.values()).most_common(1)[0][0]
            odd = next(name for name, kind in types.items() if kind != usual)
            problems.append(
                f"{source.folder.tensors[odd].file}: tensor '{odd}' has type {types[odd]}, "
                f"its counterparts {usual}; write the folder again in one type"
            )
    return problems


def _kind(source: HFSource, bare: str) -> str:
    """What a tensor is in every layer; what is joined into one parameter is of one kind."""
    general = _general(bare)
    for number, rule in enumerate(source.names.rules):
        if general in rule.theirs or bare in rule.theirs:
            return str(number)
    return general


def _general(bare: str) -> str:
    return _NUMBER.sub(".{i}.", bare)


def listed(problems: list[str]) -> str:
    """The first few problems, a line each."""
    more = [f"\n  - and {len(problems) - _MOST} more"] if len(problems) > _MOST else []
    return "".join([*(f"\n  - {line}" for line in problems[:_MOST]), *more])
