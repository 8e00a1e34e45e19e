"""Chooses an implementation of every op, once, when a model is built; says what it chose and why."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from loongforge.config.errors import UserError, did_you_mean
from loongforge.kernels import ops
from loongforge.kernels.generic import generic
from loongforge.kernels.impl import Evidence, Impl

_log = logging.getLogger(__name__)
ALL = "all"
"""Override of every op that has an implementation of that name."""


class Provider(Protocol):
    """What the registry asks of a backend."""

    name: str

    def kernels(self) -> Sequence[Impl]:
        """Implementations of its own."""
        ...

    def refused_kernels(self) -> Mapping[tuple[str, str], str]:
        """(op, name) of implementations that must not run on it, and why."""
        ...


@dataclass(frozen=True)
class Choice:
    """The implementation of an op, and those passed over."""

    impl: Impl
    rejected: tuple[tuple[str, str], ...]
    """Name and reason."""
    wanted: bool = False
    """A recipe asked for it by name."""
    fallback: Impl | None = None
    """Takes what the implementation refuses."""

    def function(self) -> Callable[..., Any]:
        """What the op calls."""
        function = self.impl.load()
        if self.impl.refuses is None or self.fallback is None:
            return function
        return _guarded(self.impl, function, self.fallback.name, self.fallback.load())


@dataclass(frozen=True)
class Selection:
    """Choices for all ops on one backend."""

    backend: str
    choices: Mapping[str, Choice]

    def names(self) -> dict[str, str]:
        """Implementation by op."""
        return {op: choice.impl.name for op, choice in self.choices.items()}

    def describe(self, measured: Mapping[tuple[str, str], str] | None = None) -> list[dict[str, Any]]:
        """Plain values, for files and machines; `measured`: (op, name) that `backends verify` has passed here."""
        return [
            {
                "op": op,
                "implementation": choice.impl.name,
                "wanted": choice.wanted,
                "evidence": evidence_of(choice.impl, measured or {}),
                "source": choice.impl.source,
                "otherwise": choice.fallback.name if choice.fallback and choice.impl.refuses else None,
                "rejected": [{"implementation": name, "reason": reason} for name, reason in choice.rejected],
            }
            for op, choice in self.choices.items()
        ]

    def text(self) -> str:
        """One line: implementations, each with its ops; the most frequent is named last, without them."""
        by_name: dict[str, list[str]] = {}
        for op, name in self.names().items():
            by_name.setdefault(name, []).append(op)
        *few, (usual, _) = sorted(by_name.items(), key=lambda item: len(item[1]))
        parts = [f"{name} ({', '.join(members)})" for name, members in few]
        return "; ".join([*parts, f"{usual} ({'all others' if parts else 'all ops'})"])


def evidence_of(impl: Impl, measured: Mapping[tuple[str, str], str]) -> Evidence:
    """A contract that was verified on this machine is measured."""
    return "measured" if impl.evidence == "contract" and (impl.op, impl.name) in measured else impl.evidence


def choose(provider: Provider, wanted: Mapping[str, str] | None = None, *, training: bool = True) -> Selection:
    """The best implementation of every op that can run here, or the one that is wanted.

    Args:
        provider: The backend.
        wanted: Names by op, or for `ALL` ops that have such an implementation. `auto` or nothing: the best.
        training: Only implementations with gradients.

    Raises:
        UserError: an unknown op or name, or one that cannot run here.
    """
    wanted = dict(wanted or {})
    everything = [*generic(), *provider.kernels()]
    _check_names(wanted, everything)
    refused = provider.refused_kernels()
    choices = {}
    for op in ops.OPS:
        candidates = sorted((impl for impl in everything if impl.op == op), key=lambda impl: -impl.priority)
        choices[op] = _choose(op, candidates, _wanted_for(op, wanted, candidates), refused, training)
    return Selection(provider.name, choices)


def check_known(wanted: Mapping[str, str], providers: Iterable[Provider]) -> None:
    """Checks what a recipe asks for where nothing is to run: some backend has to know the name.

    Args:
        wanted: As for `choose`.
        providers: All backends that are installed.

    Raises:
        UserError: an unknown op or name.
    """
    _check_names(wanted, [*generic(), *(impl for provider in providers for impl in provider.kernels())])


def _wanted_for(op: str, wanted: Mapping[str, str], candidates: Sequence[Impl]) -> str | None:
    name = wanted.get(op, "auto")
    if name == "auto" and any(impl.name == wanted.get(ALL) for impl in candidates):
        name = wanted[ALL]
    return None if name == "auto" else name


def _check_names(wanted: Mapping[str, str], everything: Sequence[Impl]) -> None:
    for op, name in wanted.items():
        if op not in (*ops.OPS, ALL):
            raise UserError(
                f"kernels.{op}: no such op.{did_you_mean(op, ops.OPS)} Allowed: {', '.join(ops.OPS)}, {ALL}"
            )
        known = sorted({impl.name for impl in everything if op in (impl.op, ALL)})
        if name not in ("auto", *known):
            hint = did_you_mean(name, known)
            raise UserError(f"kernels.{op}={name!r} is not known.{hint} Allowed: auto, {', '.join(known)}")


def _choose(
    op: str, candidates: Sequence[Impl], wanted: str | None, refused: Mapping[tuple[str, str], str], training: bool
) -> Choice:
    rejected: list[tuple[str, str]] = []
    usable = []
    for impl in candidates:
        reason = refused.get((op, impl.name)) or impl.missing()
        if training and not impl.differentiable:
            reason = reason or "has no gradients"
        if reason is None:
            usable.append(impl)
        else:
            rejected.append((impl.name, reason))
    if wanted is not None:
        why = dict(rejected).get(wanted)
        if why is not None:
            raise UserError(f"kernels.{op}={wanted!r} cannot be used here: {why}. Use kernels.{op}=auto")
        chosen = next(impl for impl in usable if impl.name == wanted)
    else:
        chosen = usable[0]
    reason = "not asked for" if wanted is not None else f"{chosen.name} comes before it"
    rejected += [(impl.name, reason) for impl in usable if impl is not chosen]
    fallback = next((impl for impl in usable if impl.refuses is None), None)
    return Choice(chosen, tuple(rejected), wanted is not None, None if fallback is chosen else fallback)


def _guarded(
    impl: Impl, function: Callable[..., Any], other_name: str, other: Callable[..., Any]
) -> Callable[..., Any]:
    """The function where it takes the arguments, else the other one; said once per reason. No kernel is ever retried:
    one that raises has failed."""
    said: set[str] = set()
    refuses = impl.refuses
    assert refuses is not None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        reason = refuses(*args, **kwargs)
        if reason is None:
            return function(*args, **kwargs)
        if reason not in said:
            said.add(reason)
            _log.warning("kernels.%s: %s does not take this (%s); %s does", impl.op, impl.name, reason, other_name)
        return other(*args, **kwargs)

    return call


_selection: Selection | None = None


def selection() -> Selection | None:
    """What is bound; None: nothing has been chosen yet, and the implementations `torch` hold."""
    return _selection


def bind(chosen: Selection) -> Selection:
    """Makes the ops call the chosen implementations, for the rest of this process.

    Raises:
        RuntimeError: others are bound already; models that were built with them would change under way. `rebound` is
            for comparisons.
    """
    global _selection
    if _selection is not None and (_selection.backend, _selection.names()) != (chosen.backend, chosen.names()):
        raise RuntimeError(f"ops are bound already: {_selection.text()}. Not rebound to: {chosen.text()}")
    if _selection is None:
        _install(chosen)
        _selection = chosen
        _log.info("kernels on %s: %s", chosen.backend, chosen.names())
    return _selection


@contextmanager
def rebound(chosen: Selection) -> Iterator[Selection]:
    """Binds others for a while."""
    global _selection
    before, functions = _selection, dict(ops.bound)
    _selection = chosen
    _install(chosen)
    try:
        yield chosen
    finally:
        _selection = before
        ops.bound.update(functions)


def _install(chosen: Selection) -> None:
    for op, choice in chosen.choices.items():
        ops.bound[op] = choice.function()


class _Nothing:
    """A backend with nothing of its own."""

    name = "none"

    def kernels(self) -> Sequence[Impl]:
        return ()

    def refused_kernels(self) -> Mapping[tuple[str, str], str]:
        return {}


_install(choose(_Nothing()))
