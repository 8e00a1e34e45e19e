"""Every layout that the schema accepts on 2 and 4 ranks (8 in the slow run) trains as one process does.

Losses of 25 steps within 2e-5, first-step gradient of every parameter within 1e-4 relative, norms within 1e-5 relative,
replicas bit-identical after every step; on batches with uneven image counts, steps and ranks without any image, and
samples of different lengths, padded or packed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from loongforge.config.schema import Config, LoraConfig
from loongforge.training.verify.compare import compare
from loongforge.training.verify.outcome import Outcome
from tests.parallel.cases import train
from tests.parallel.fault_names import FAULTS
from tests.parallel.matrix import Choice, layouts, matrix_config
from tests.support.ranks import RankPool

Pools = Callable[[int], RankPool]


@dataclass(frozen=True)
class Variant:
    """What else may change without changing a number."""

    frozen: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    packed: bool = False
    distributed: bool = False
    window: int | None = None
    projector_apart: bool = False

    def __str__(self) -> str:
        words = [f"frozen {'+'.join(self.frozen)}" if self.frozen else "", "packed" if self.packed else ""]
        words += [f"adapters {'+'.join(self.adapted)}" if self.adapted else ""]
        words += ["distributed" if self.distributed else "", f"window {self.window}" if self.window else ""]
        return ", ".join(filter(None, [*words, "projector apart" if self.projector_apart else ""])) or "plain"


VARIANTS = [
    Variant(),
    Variant(packed=True, distributed=True, projector_apart=True),
    Variant(frozen=("vision",), window=1),
    Variant(distributed=True, window=3),
    Variant(packed=True, projector_apart=True),
    Variant(frozen=("vision", "llm"), packed=True, distributed=True),
    Variant(frozen=("projector", "llm"), projector_apart=True),
    Variant(frozen=("vision", "projector"), packed=True),
    Variant(distributed=True, projector_apart=True, window=2),
    Variant(frozen=("vision",), adapted=("llm",), packed=True),
    Variant(adapted=("vision", "projector", "llm"), distributed=True),
]


def _config(variant: Variant) -> Config:
    config = matrix_config(distributed=variant.distributed)
    config.trainer.encode_window = variant.window
    for name in variant.frozen:
        getattr(config.model, name).freeze = True
    for name in variant.adapted:
        getattr(config.model, name).lora = LoraConfig(rank=2)
    return config


def _pairs(world: int, *, every: bool = False) -> list[Any]:
    """Each layout with one variant, in turn; or with every one."""
    found = []
    for number, choice in enumerate(layouts(world)):
        for variant in VARIANTS if every else [VARIANTS[number % len(VARIANTS)]]:
            shown = choice.with_projector_apart() if variant.projector_apart else choice
            found.append(pytest.param(shown, variant, id=f"{shown} {variant}"))
    return found


@pytest.fixture(scope="module")
def one_process() -> Iterator[Callable[..., Outcome]]:
    """The reference for some frozen and adapted components, on padded batches."""
    known: dict[tuple[Any, ...], Outcome] = {}
    with RankPool(1) as pool:

        def reference(variant: Variant, steps: int = 25) -> Outcome:
            key = variant.frozen, variant.adapted, steps
            if key not in known:
                config = _config(Variant(frozen=variant.frozen, adapted=variant.adapted))
                config.trainer.steps = steps
                known[key] = pool.run(train, config)[0]
            return known[key]

        yield reference


def _check(choice: Choice, variant: Variant, one_process: Any, pools: Pools) -> None:
    config = choice.apply(_config(variant))
    ranks = pools(choice.world).run(train, config, "", variant.packed)
    assert not compare(one_process(variant), ranks).problems


@pytest.mark.parametrize(("choice", "variant"), _pairs(1, every=True) + _pairs(2) + _pairs(4))
def test_layout_equals_one_process(choice: Choice, variant: Variant, one_process: Any, rank_pool: Pools) -> None:
    _check(choice, variant, one_process, rank_pool)


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "variant"), _pairs(2, every=True) + _pairs(4, every=True) + _pairs(8))
def test_every_variant_of_every_layout(choice: Choice, variant: Variant, one_process: Any, rank_pool: Pools) -> None:
    _check(choice, variant, one_process, rank_pool)


FAULTY = {
    "colocated": Choice(4, (("tp", 2), ("cp", 2)), (("tp", 1),)),
    "decoupled": Choice(4, (("tp", 2),), (("tp", 1), ("ranks", (0, 1)))),
    "replicated": Choice(4, (("tp", 2),), (("tp", 2),)),
}
ELSEWHERE = {("local count", "colocated"), ("local count", "decoupled"), ("late document", "decoupled"),
             ("late document", "replicated"), ("gradient scale", "replicated")}  # fmt: skip
"""Faults that need another layout to be one: several LLM replicas, context parallelism, another DP of the encoder."""


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", FAULTY)
def test_a_fault_is_seen(place: str, fault: str, one_process: Any, rank_pool: Pools) -> None:
    config = FAULTY[place].apply(_config(Variant()))
    config.trainer.steps = 2
    ranks = rank_pool(4).run(train, config, fault)
    seen = bool(compare(one_process(Variant(), steps=2), ranks).problems)
    assert seen == ((fault, place) not in ELSEWHERE)


def test_the_matrix_is_what_it_claims() -> None:
    four = [choice.layout() for choice in layouts(4)]
    sizes = {(layout.llm.tp, layout.llm.pp, layout.llm.cp, layout.llm.dp) for layout in four}
    for axis in range(4):
        assert {1, 2, 4} <= {size[axis] for size in sizes}
    assert {(layout.vision.tp, layout.vision.dp) for layout in four if layout.vision} >= {
        (1, 4), (2, 2), (4, 1), (1, 2), (2, 1), (1, 1)
    }  # fmt: skip
    assert {layout.decoupled for layout in four} == {layout.sequence_parallel for layout in four} == {True, False}
