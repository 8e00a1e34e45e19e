"""Any layout, same numbers: losses, norms and gradients of every layout equal those of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from loongforge.config.schema import Config, ParallelConfig
from tests.parallel.cases import train
from tests.support.ranks import RankPool
from tests.support.tiny import tiny_config

Pools = Callable[[int], RankPool]
STEPS = 12


def differences(reference: dict[str, Any], ranks: list[dict[str, Any]]) -> list[str]:
    """What differs between one process and the ranks of a layout."""
    found = [f"replicas of {name} differ" for name in ranks[0]["differing"]]
    result = ranks[0]
    loss = max(abs(a - b) for a, b in zip(reference["losses"], result["losses"], strict=True))
    if loss > 2e-5:
        found.append(f"losses differ by {loss:.2e}")
    norm = max(abs(a - b) / max(a, 1e-9) for a, b in zip(reference["norms"], result["norms"], strict=True))
    if norm > 1e-5:
        found.append(f"norms differ by {norm:.2e}")
    total = np.sqrt(sum(np.square(gradient).sum() for gradient in reference["gradients"].values()))
    seen = {name: gradient for rank in ranks for name, gradient in rank["gradients"].items()}
    missing = set(reference["gradients"]) - set(seen)
    for name, gradient in reference["gradients"].items():
        if name in seen:
            error = np.linalg.norm(gradient - seen[name]) / max(np.linalg.norm(gradient), 1e-4 * total)
            if error > 1e-4:
                found.append(f"gradient of {name} differs by {error:.2e}")
    return found + [f"no gradient of {name}" for name in sorted(missing)]


@pytest.fixture(scope="module")
def one_process() -> Iterator[Callable[..., dict[str, Any]]]:
    """The reference of a configuration, computed once."""
    known: dict[str, dict[str, Any]] = {}
    with RankPool(1) as pool:

        def reference(**options: Any) -> dict[str, Any]:
            key = repr(sorted(options.items()))
            if key not in known:
                steps = options.pop("steps", STEPS)
                known[key] = pool.run(train, _config(steps, **options))[0]
            return known[key]

        yield reference


def _config(steps: int, **options: Any) -> Config:
    config = tiny_config(**options)
    config.trainer.steps = steps
    return config


TIED = dict(tie_embeddings=True)
QWEN = dict(qkv_bias=True, qk_norm=True)
CASES = {
    "tp2": (2, ParallelConfig(tp=2), {}),
    "tp2 qwen": (2, ParallelConfig(tp=2), QWEN),
    "tp2 siglip linear": (2, ParallelConfig(tp=2), dict(vision="siglip", projector="linear")),
    "tp2 sp": (2, ParallelConfig(tp=2, sequence_parallel=True), {}),
    "dp2": (2, ParallelConfig(), {}),
    "dp2 distributed optimizer": (2, ParallelConfig(), dict(distributed=True)),
    "pp2": (2, ParallelConfig(pp=2), {}),
    "pp2 tied": (2, ParallelConfig(pp=2), TIED),
    "tp2 dp2": (4, ParallelConfig(tp=2), {}),
    "tp2 dp2 sp": (4, ParallelConfig(tp=2, sequence_parallel=True), {}),
    "pp2 tp2": (4, ParallelConfig(tp=2, pp=2), {}),
    "pp2 tp2 sp tied qwen": (4, ParallelConfig(tp=2, pp=2, sequence_parallel=True), TIED | QWEN),
    "pp2 dp2 distributed optimizer": (4, ParallelConfig(pp=2), dict(distributed=True)),
    "dp4": (4, ParallelConfig(), {}),
}
LONG = ("dp2", "pp2", "pp2 tp2 sp tied qwen")  # a drift that grows with the steps would show


@pytest.mark.parametrize("name", CASES)
def test_layout_equals_one_process(name: str, one_process: Callable[..., dict[str, Any]], rank_pool: Pools) -> None:
    nproc, parallel, options = CASES[name]
    steps = 30 if name in LONG else STEPS
    reference = one_process(steps=steps, **{key: value for key, value in options.items() if key != "distributed"})
    ranks = rank_pool(nproc).run(train, _config(steps, parallel=parallel, **options))
    assert not differences(reference, ranks)


@pytest.mark.parametrize("fault", ["local count", "no reduction"])
def test_a_fault_is_seen(fault: str, one_process: Callable[..., dict[str, Any]], rank_pool: Pools) -> None:
    ranks = rank_pool(2).run(train, _config(STEPS), fault)
    assert differences(one_process(), ranks)


def test_pipeline_with_a_frozen_llm(one_process: Callable[..., dict[str, Any]], rank_pool: Pools) -> None:
    reference = one_process(freeze=True)
    ranks = rank_pool(2).run(train, _config(STEPS, freeze=True, parallel=ParallelConfig(pp=2)))
    assert not differences(reference, ranks)


def test_bf16_learns_under_every_layout(one_process: Callable[..., dict[str, Any]], rank_pool: Pools) -> None:
    reference = one_process(precision="bf16")
    config = _config(STEPS, precision="bf16", distributed=True, parallel=ParallelConfig(tp=2))
    result = rank_pool(4).run(train, config)[0]
    assert np.allclose(reference["losses"], result["losses"], atol=0.05)
