"""Which parameters of a component train: its `freeze`, and the patterns of its `train`; which layers are adapted.

No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from loongforge.config.errors import did_you_mean
from loongforge.config.schema import ComponentConfig

_NOT = "!"
ALL_LINEAR = "all-linear"


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern is some whole segments of a parameter's global name, one after another; `*` is anything.

    `embedding` matches `embedding.word_embeddings.weight`, `layers.3` and `linear_qkv.bias` parameters of layers.
    """
    pattern = pattern.removeprefix(_NOT)
    return any(fnmatchcase(name, f"{before}{pattern}{after}") for before in ("", "*.") for after in ("", ".*"))


def trains(name: str, component: ComponentConfig) -> bool:
    """Whether a component's own parameter trains: the last pattern that matches it decides, else `freeze`."""
    found = not component.freeze and component.lora is None
    for pattern in component.train:
        if matches(name, pattern):
            found = not pattern.startswith(_NOT)
    return found


def is_adapted(layer: str, targets: Iterable[str]) -> bool:
    """Whether a layer gets an adapter: its name in Hugging Face's component ends with a target; `*` is anything."""
    return any(
        target == ALL_LINEAR
        or fnmatchcase(layer, target)
        or fnmatchcase(layer, f"*.{target}")
        or target.endswith(f".{layer}")
        for target in targets
    )


def unmatched(patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Patterns that match none of the names."""
    return [pattern for pattern in patterns if not any(matches(name, pattern) for name in names)]


def unmatched_problem(pattern: str, names: Iterable[str]) -> str:
    """What to say of a pattern that matches nothing, with the closest part of a name."""
    parts = {part for name in names for part in _parts(name)}
    hint = did_you_mean(pattern.removeprefix(_NOT), sorted(parts))
    return f"train: no parameter's name has the part '{pattern.removeprefix(_NOT)}'.{hint}"


def _parts(name: str) -> Iterable[str]:
    """Single segments, beginnings and ends."""
    segments = name.split(".")
    yield from segments
    for i in range(1, len(segments) + 1):
        yield ".".join(segments[:i])
        yield ".".join(segments[-i:])
