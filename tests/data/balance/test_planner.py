"""What holds for every plan: each sample once, caps, no empty cell, the same plan everywhere."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from loongforge.data.balance import BatchMetadata, CostModel, Plan, lower_bound, plan, step_time
from tests.data.balance.kinds import KINDS, QWEN, packed_batch
from tests.data.balance.rules import broken_rules
from tests.data.balance.strategies import Case, cases
from tests.repo.files import REPO

OBJECTIVES = ("one_barrier", "lock_step", "pipeline")


def _text(*tokens: int) -> BatchMetadata:
    return BatchMetadata(tokens, [0] * (len(tokens) + 1), [], [], [])


@settings(max_examples=150, deadline=None)
@given(cases())
def test_rules_hold(case: Case) -> None:
    shape = {"ranks": case.ranks, "micro_batches": case.micro_batches}
    arguments = {**shape, "cost": case.cost, "objective": case.objective}
    made = plan(case.batch, **arguments)
    assert not broken_rules(made, case.batch, **shape)
    assert (made.encoder_rank is None) == (case.objective != "lock_step")
    assert plan(case.batch, **arguments).digest() == made.digest()
    assert step_time(made, case.batch, **arguments) >= lower_bound(case.batch, **arguments) * (1 - 1e-9)


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from([1.0, 1.05, 1.2]), st.booleans())
def test_caps_hold(case: Case, slack: float, with_patches: bool) -> None:
    """Plans within the caps, or an error that names a number of micro-batches which has one."""
    assume(len(case.batch))
    shape = {"ranks": case.ranks, "micro_batches": case.micro_batches}
    cells, tokens, patches = case.ranks * case.micro_batches, case.batch.tokens(), case.batch.patches()
    caps = {"token_cap": max(int(tokens.max()), int(np.ceil(slack * tokens.sum() / cells)))}
    if with_patches:
        caps["patch_cap"] = max(int(patches.max()), int(np.ceil(slack * patches.sum() / cells)))
    try:
        made = plan(case.batch, **shape, cost=case.cost, objective=case.objective, **caps)
    except ValueError as error:
        shape["micro_batches"] = int(str(error).split("micro_batches=")[1].split(",")[0])
        made = plan(case.batch, **shape, cost=case.cost, objective=case.objective, **caps)
    assert not broken_rules(made, case.batch, **shape, **caps)


def _best(
    batch: BatchMetadata, cost: CostModel, ranks: int, micro_batches: int, objective: str, cap: int
) -> float | None:
    """Shortest step time of all plans within the cap and without an empty cell."""
    cells, best = ranks * micro_batches, None
    for assignment in itertools.product(range(cells), repeat=len(batch)):
        cell = np.array(assignment)
        made = Plan(cell // micro_batches, cell % micro_batches, np.zeros(0, np.int64))
        if not broken_rules(made, batch, ranks=ranks, micro_batches=micro_batches, token_cap=cap):
            time = step_time(made, batch, ranks=ranks, micro_batches=micro_batches, cost=cost, objective=objective)
            best = time if best is None else min(best, time)
    return best


@settings(max_examples=20, deadline=None)
@given(st.data(), st.sampled_from(OBJECTIVES), st.sampled_from([(1, 2), (2, 1), (2, 2), (3, 1)]))
def test_few_samples_are_placed_as_well_as_can_be(data: st.DataObject, objective: str, shape: tuple[int, int]) -> None:
    ranks, micro_batches = shape
    sizes = st.one_of(st.integers(1, 60), st.integers(1, 5).map(lambda x: 100 * x))
    tokens = data.draw(st.lists(sizes, min_size=ranks * micro_batches, max_size=5))
    cap = max(*tokens, int(sum(tokens) / ranks / micro_batches * data.draw(st.sampled_from([1.0, 1.1, 2.0]))))
    cost = CostModel(llm_linear=0.07, llm_quadratic=2e-5)
    best = _best(_text(*tokens), cost, ranks, micro_batches, objective, cap)
    arguments = {"ranks": ranks, "micro_batches": micro_batches, "cost": cost, "objective": objective}
    if best is None:
        with pytest.raises(ValueError, match="no plan"):
            plan(_text(*tokens), **arguments, token_cap=cap)
    else:
        made = plan(_text(*tokens), **arguments, token_cap=cap)
        assert step_time(made, _text(*tokens), **arguments) <= best * 1.2


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_fewer_samples_than_ranks(objective: str) -> None:
    batch = _text(50, 4000, 50)
    made = plan(batch, ranks=8, micro_batches=2, cost=QWEN, objective=objective)
    assert len(set(made.rank.tolist())) == 3
    arguments = {"ranks": 8, "micro_batches": 2, "cost": QWEN, "objective": objective}
    assert step_time(made, batch, **arguments) == pytest.approx(lower_bound(batch, **arguments))


@pytest.mark.parametrize("tokens", [(0, 0, 0, 50), (1, 5, 5, 100), (0,) * 7 + (9000,)])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_cell_is_empty_however_little_there_is(tokens: tuple[int, ...], objective: str) -> None:
    made = plan(_text(*tokens), ranks=2, micro_batches=2, cost=QWEN, objective=objective)
    assert not broken_rules(made, _text(*tokens), ranks=2, micro_batches=2)


def test_giant_stands_alone() -> None:
    batch = _text(*[100] * 30, 30_000)
    made = plan(batch, ranks=4, micro_batches=2, cost=QWEN, objective="lock_step")
    assert not broken_rules(made, batch, ranks=4, micro_batches=2)
    alone = (made.rank == made.rank[-1]) & (made.micro_batch == made.micro_batch[-1])
    assert alone.sum() == 1


def test_equal_samples_are_shared_equally() -> None:
    for objective in OBJECTIVES:
        made = plan(_text(*[700] * 96), ranks=6, micro_batches=4, cost=QWEN, objective=objective)
        assert (np.bincount(made.rank * 4 + made.micro_batch) == 4).all()


def test_sample_above_a_cap_is_named() -> None:
    batch = BatchMetadata([10, 20, 30], [0, 0, 1, 1], [3], [256], [192])
    with pytest.raises(ValueError, match=r"sample 1 has 212 tokens \(20 of text, 1 images\); token_cap is 200"):
        plan(batch, ranks=2, micro_batches=1, cost=QWEN, token_cap=200)
    with pytest.raises(ValueError, match=r"sample 1 has 768 patches .*patch_cap is 700"):
        plan(batch, ranks=2, micro_batches=1, cost=QWEN, patch_cap=700)


def test_too_many_tokens_say_how_many_micro_batches_do() -> None:
    with pytest.raises(ValueError, match=r"60 tokens where 48 fit \(12 a cell\).*micro_batches=3,"):
        plan(_text(*[10] * 6), ranks=2, micro_batches=2, cost=QWEN, token_cap=12)


@pytest.mark.parametrize(
    "wrong", [{"ranks": 0}, {"micro_batches": 0}, {"objective": "ddp"}], ids=["ranks", "micro_batches", "objective"]
)
def test_what_cannot_be_planned(wrong: dict[str, object]) -> None:
    arguments: dict[str, object] = {"ranks": 2, "micro_batches": 2, "objective": "lock_step", **wrong}
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        plan(_text(1, 2), cost=QWEN, **arguments)  # type: ignore[arg-type]


_DIGESTS = """
import random, sys
import numpy as np
random.seed(int(sys.argv[1])); np.random.seed(int(sys.argv[1]))
from loongforge.data.balance import plan
assert not {"torch", "transformers", "megatron"} & {name.split(".")[0] for name in sys.modules}
from tests.data.balance.kinds import KINDS, packed_batch
for kind in ("omni", "tiles, heavy encoder"):
    batch, _ = packed_batch(kind, 16, 4, seed=5)
    for objective in ("one_barrier", "lock_step", "pipeline"):
        cap = KINDS[kind].budget
        print(plan(batch, 16, 4, KINDS[kind].cost, objective, token_cap=cap, patch_cap=8 * cap).digest())
batch, _ = packed_batch("interleaved", 16, 4, seed=5)
tight = int(np.ceil(batch.tokens().sum() / 64))  # cells have to be filled to the last token
assert tight >= batch.tokens().max()
print(plan(batch, 16, 4, KINDS["interleaved"].cost, token_cap=tight).digest())
"""


def test_same_plan_in_every_process_and_on_every_processor() -> None:
    """Other hash seed, other random state, and numpy without its code for wide registers."""
    features = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"
    printed = []
    for seed, disabled in (("1", ""), ("2", features)):
        given_ = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(REPO), "NPY_DISABLE_CPU_FEATURES": disabled}
        command = [sys.executable, "-W", "ignore", "-c", _DIGESTS, seed]
        done = subprocess.run(command, cwd=REPO, env=given_, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.split())
    assert len(printed[0]) == 7
    assert printed[0] == printed[1]


def test_state_of_the_process_is_left_alone() -> None:
    batch, _ = packed_batch("omni", 8, 4, seed=1)
    before, columns = np.random.get_state()[1].tolist(), [batch.text_tokens.copy(), batch.image_tokens.copy()]
    first = plan(batch, 8, 4, KINDS["omni"].cost)
    plan(packed_batch("video", 8, 2, seed=2)[0], 8, 2, KINDS["video"].cost)
    assert plan(batch, 8, 4, KINDS["omni"].cost).digest() == first.digest()
    assert np.random.get_state()[1].tolist() == before
    assert (batch.text_tokens == columns[0]).all() and (batch.image_tokens == columns[1]).all()


def test_example_of_the_docs() -> None:
    page = (REPO / "docs" / "data.md").read_text(encoding="utf-8")
    block = page.split("## Balance")[1].split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(block, names)
    assert f"# {names['packs']!r}: the pack" in block
