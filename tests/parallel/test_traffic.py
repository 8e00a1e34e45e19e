"""Between encoder and LLM travel image rows and their gradients: each once, straight, and nothing else.

What ranks are told by `Runner(observe=...)` is compared with what torch hands to the communication library, and the
values that arrive with those of one process, so that every row is known by what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from loongforge.config.schema import Config
from tests.parallel.matrix import Choice, matrix_config
from tests.parallel.traffic import ALL, Case, Examination, Seen, Tables
from tests.parallel.traffic_cases import Step, tables, train
from tests.support.ragged import Texts, image_positions
from tests.support.ranks import RankPool

Pools = Callable[[int], RankPool]
LENGTH = 40
EVERYONE, FIRST, LAST = (0, 1, 2, 3), (0, 1), (2, 3)


Options = dict[str, Any]


def _case(llm: Options, vision: Options, *rest: Any, projector: Any = (), micro: int = 2, **more: Any) -> Case:
    choice = Choice(4, tuple(llm.items()), tuple(vision.items()), tuple(dict(projector).items()), micro)
    return Case(choice, *rest, **more)


HALVES = ({0: (0, 1), 1: (2, 3)}, {2: (0, 1), 3: (2, 3)})
TWO_OF_TP2 = ({0: ALL, 1: ALL}, {2: ALL, 3: ALL})
BOTH_FIRST = ({0: ALL, 1: ALL},)
ONE_EACH = (((0,), (1,)), ((2,), (3,)))
CASES = {
    "tp2, an encoder each": _case(dict(tp=2), dict(tp=1), TWO_OF_TP2, ONE_EACH, window=2),
    "tp2 and sp": _case(dict(tp=2, sequence_parallel=True), dict(tp=1), HALVES, ONE_EACH, micro=3),
    "cp2": _case(dict(cp=2), dict(tp=1), ({0: (0, 3), 1: (1, 2)}, {2: (0, 3), 3: (1, 2)}), ONE_EACH),
    "tp2 and cp2 and sp": _case(
        dict(tp=2, cp=2, sequence_parallel=True), dict(tp=2), ({0: (0,), 1: (3,), 2: (1,), 3: (2,)},),
        (((0, 1), (2, 3)),), micro=3,
    ),
    "dp4, two encoders": _case(
        dict(tp=1), dict(tp=2), tuple({r: ALL} for r in EVERYONE), (((0, 1),),) * 2 + (((2, 3),),) * 2, micro=3
    ),
    "pp2, encoders everywhere": _case(dict(pp=2), dict(tp=1), ({0: ALL}, {1: ALL}), (((0,), (2,)), ((1,), (3,)))),
    "pp2 tp2, encoders everywhere": _case(
        dict(pp=2, tp=2), dict(tp=1), BOTH_FIRST, (((0,), (1,), (2,), (3,)),), window=2
    ),
    "pp2 tp2, encoders on the first stage": _case(
        dict(pp=2, tp=2, ranks=EVERYONE), dict(tp=1, ranks=FIRST), BOTH_FIRST, (((0,), (1,)),), micro=3
    ),
    "decoupled, tp2": _case(dict(tp=2), dict(tp=1, ranks=LAST), BOTH_FIRST, (((2,), (3,)),), window=1),
    "decoupled, tp2 and encoder tp2": _case(dict(tp=2), dict(tp=2, ranks=LAST), BOTH_FIRST, (((2, 3),),), micro=3),
    "decoupled, cp2": _case(dict(cp=2), dict(tp=1, ranks=LAST), ({0: (0, 3), 1: (1, 2)},), (((2,), (3,)),), window=2),
    "decoupled, pp2 before": _case(dict(pp=2, ranks=LAST), dict(tp=1, ranks=FIRST), ({2: ALL},), (((0,), (1,)),)),
    "decoupled, one encoder for dp3": _case(
        dict(tp=1), dict(tp=1, ranks=(3,)), ({0: ALL}, {1: ALL}, {2: ALL}), (((3,),),) * 3
    ),
    "projector apart": _case(
        dict(tp=2), dict(tp=2), TWO_OF_TP2, (((0, 1),), ((2, 3),)), projecting=ONE_EACH, projector=dict(tp=1)
    ),
    "decoupled, projector apart": _case(
        dict(tp=2, sequence_parallel=True), dict(tp=1, ranks=LAST), HALVES[:1], (((2,), (3,)),), (((2, 3),),),
        projector=dict(tp=2), micro=3,
    ),
}  # fmt: skip

WAYS = ("forward", "backward")
ALL_KEPT = {
    "tp2, an encoder each": ["backward"],
    "dp4, two encoders": ["forward"],
    "pp2 tp2, encoders on the first stage": ["backward"],
}
"""Here those who need the rows, or their gradients, have them already: nothing travels that way."""

MIXED: tuple[Texts, ...] = (
    (2, 3), (1, 1, 1, 6), (9,), (4,), (5, 2, 4), (12,), (0, 3), (8,), (3, 12), (1, 4, 2, 1, 2, 5), (7,), (2,)
)  # fmt: skip
"""Some micro-batches have no image, and replicas have different numbers; an image may stand at the very beginning."""
FEW: tuple[Texts, ...] = ((6,), (5,), (3,), (2,), (4,), (7,), (9,), (2, 5), (6,), (3,), (1, 2, 5), (8,))
NONE: tuple[Texts, ...] = ((6,), (3,)) * 6
LONGER = tuple(tuple(2 * text for text in sample) for sample in MIXED)
FROZEN = [(), ("vision",), ("projector",), ("vision", "projector")]
STEPS = {
    "mixed": Step(MIXED, LENGTH),
    "few images": Step(FEW, LENGTH, seed=3),
    "no images": Step(NONE, LENGTH, seed=5),
    "longer texts": Step(LONGER, 2 * LENGTH),
    **{f"frozen {' and '.join(names)}": Step(MIXED, LENGTH, frozen=names) for names in FROZEN[1:]},
}


def _config(**options: Any) -> Config:
    return matrix_config(num_layers=2, vision_changes=dict(num_layers=2), **options)


@pytest.fixture(scope="module")
def one_process() -> Iterator[Callable[[Step], Tables]]:
    """Everything that could travel in a step."""
    known: dict[Any, Tables] = {}
    with RankPool(1) as pool:

        def of(step: Step) -> Tables:
            key = (step.samples, step.length, step.seed)
            if key not in known:
                known[key] = pool.run(tables, _config(), step)[0]
            return known[key]

        yield of


def _examined(case: Case, names: list[str], one_process: Any, pools: Pools, fault: str = "") -> dict[str, Examination]:
    config = case.choice.apply(_config())
    config.trainer.encode_window = case.window
    steps = [STEPS[name] for name in names]
    ranks: list[list[Seen]] = pools(4).run(train, config, steps, fault)
    found = {}
    for number, (name, step) in enumerate(zip(names, steps, strict=True)):
        positions = [image_positions(sample) for sample in step.samples]
        seen = [rank[number] for rank in ranks]
        found[name] = Examination(case, positions, step.length, one_process(step), step.frozen, seen)
    return found


@pytest.mark.parametrize("name", CASES)
def test_each_row_travels_once_and_straight(name: str, one_process: Any, rank_pool: Pools) -> None:
    case = CASES[name]
    steps = _examined(case, list(STEPS), one_process, rank_pool)
    assert {step: examined.problems() for step, examined in steps.items()} == {step: [] for step in STEPS}
    assert [way for way in WAYS if not steps["mixed"].bytes(way)] == ALL_KEPT.get(name, [])
    assert steps["no images"].bytes("forward") == steps["no images"].bytes("backward") == 0
    assert steps["frozen vision and projector"].bytes("backward") == 0
    assert _independent_of_the_text(case, steps["mixed"], steps["longer texts"])


def _independent_of_the_text(case: Case, short: Examination, long: Examination) -> bool:
    if any(quarters != ALL for ranks in case.merging for quarters in ranks.values()):  # images come to other ranks
        return all(short.bytes(way, kept=True) == long.bytes(way, kept=True) for way in WAYS)
    return all(one.messages == other.messages for one, other in zip(short.ranks, long.ranks, strict=True))


@pytest.mark.parametrize("name", ["tp2 and sp", "decoupled, projector apart"])
def test_rows_in_bf16_take_half_the_bytes(name: str, rank_pool: Pools) -> None:
    configs = [CASES[name].choice.apply(_config(precision=precision)) for precision in ("fp32", "bf16")]
    full, half = ([seen for (seen,) in rank_pool(4).run(train, config, [STEPS["mixed"]])] for config in configs)
    for one, other in zip(full, half, strict=True):
        assert [(*about, size // 2) for *about, size in one.messages] == [tuple(message) for message in other.messages]
        assert [(target, size // 2) for target, size in one.sent] == other.sent
        assert other.sent


FAULTS = {
    "twice": ("mixed", "times"),
    "shifted": ("mixed", "merges"),
    "untold": ("mixed", "told"),
    "needless": ("mixed", "is not needed on rank 2"),
    "whole sequences": ("mixed", "row -1 is not needed"),
    "gathered": ("mixed", "joins others in gather"),
    "relay": ("mixed", "by way of rank 0"),
    "frozen": ("frozen vision and projector", "gradient of row"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str, one_process: Any, rank_pool: Pools) -> None:
    step, expected = FAULTS[fault]
    case = CASES["pp2 tp2, encoders everywhere"]
    problems = _examined(case, [step], one_process, rank_pool, fault)[step].problems()
    assert any(expected in problem for problem in problems)


def test_messages_that_grow_with_the_text_are_seen(one_process: Any, rank_pool: Pools) -> None:
    case, steps = CASES["pp2 tp2, encoders everywhere"], ["mixed", "longer texts"]
    short, long = _examined(case, steps, one_process, rank_pool, "whole sequences").values()
    assert not _independent_of_the_text(case, short, long)
