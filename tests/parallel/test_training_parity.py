"""Any architecture under a few layouts equals one process; `test_layout_matrix.py` has every layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from loongforge.config.schema import Config, LoraConfig, ParallelConfig
from loongforge.training.verify.compare import compare
from loongforge.training.verify.outcome import Outcome
from tests.parallel.cases import train
from tests.support.ranks import RankPool
from tests.support.tiny import tiny_config

Pools = Callable[[int], RankPool]
STEPS = 12


@pytest.fixture(scope="module")
def one_process() -> Iterator[Callable[..., Outcome]]:
    """The reference of a configuration, computed once."""
    known: dict[str, Outcome] = {}
    with RankPool(1) as pool:

        def reference(**options: Any) -> Outcome:
            key = repr(sorted(options.items()))
            if key not in known:
                steps = options.pop("steps", STEPS)
                known[key] = pool.run(train, _config(steps, **options))[0]
            return known[key]

        yield reference


def _config(steps: int, **options: Any) -> Config:
    batch = options.pop("global_batch_size", 8)
    config = tiny_config(**options)
    config.trainer.steps, config.trainer.global_batch_size = steps, batch
    return config


TIED = dict(tie_embeddings=True)
QWEN = dict(qkv_bias=True, qk_norm=True)
WINDOW = dict(sliding_window=5, window_layers=[0, 1, 3])
CASES = {
    "tp2 qwen": (2, ParallelConfig(tp=2), QWEN),
    "tp2 siglip linear": (2, ParallelConfig(tp=2), dict(vision="siglip", projector="linear")),
    "pp2 tied": (2, ParallelConfig(pp=2), TIED),
    "cp2 tied qwen": (2, ParallelConfig(cp=2), TIED | QWEN),
    "pp2 tp2 sp tied qwen": (4, ParallelConfig(tp=2, pp=2, sequence_parallel=True), TIED | QWEN),
    "tp4 shared kv heads": (4, ParallelConfig(tp=4), QWEN),
    "tp4 odd vocabulary": (4, ParallelConfig(tp=4), dict(vocab_size=257)),
    "tp2 pp2 odd vocabulary, tied": (4, ParallelConfig(tp=2, pp=2), TIED | dict(vocab_size=261, distributed=True)),
    "tp4 sp, one kv head": (4, ParallelConfig(tp=4, sequence_parallel=True), QWEN | dict(num_kv_heads=1)),
    "pp3 uneven": (3, ParallelConfig(pp=3), dict(num_layers=7, global_batch_size=6)),
    "cp2 window": (2, ParallelConfig(cp=2), WINDOW),
    "tp2 pp2 window": (4, ParallelConfig(tp=2, pp=2), WINDOW),
}
LORA = dict(lora=LoraConfig(rank=3, alpha=7.0, targets=["q_proj", "v_proj", "mlp.*", "layers.1.self_attn.o_proj"]))
EVERY_LINEAR = LoraConfig(rank=2)
ADAPTED = dict(
    vision_changes={"lora": EVERY_LINEAR}, projector_changes={"lora": EVERY_LINEAR}, lora=EVERY_LINEAR, vision="siglip"
)
CASES |= {
    "lora tp2": (2, ParallelConfig(tp=2), LORA),
    "lora tp2 sp tied": (2, ParallelConfig(tp=2, sequence_parallel=True), LORA | TIED),
    "lora pp2": (2, ParallelConfig(pp=2), LORA),
    "lora everywhere tp2 dp2": (4, ParallelConfig(tp=2), ADAPTED | dict(distributed=True)),
    "lora linear cp2": (2, ParallelConfig(cp=2), ADAPTED | dict(projector="linear")),
}
MMCA = dict(attention="mmca")
CASES |= {
    "mmca tp2 sp": (2, ParallelConfig(tp=2, sequence_parallel=True), MMCA),
    "mmca pp2 tied": (2, ParallelConfig(pp=2), MMCA | TIED),
    "mmca cp2": (2, ParallelConfig(cp=2), MMCA),
}
LONG = ("pp2 tied", "pp2 tp2 sp tied qwen")  # a drift that grows with the steps would show


@pytest.mark.parametrize("name", CASES)
def test_layout_equals_one_process(name: str, one_process: Callable[..., Outcome], rank_pool: Pools) -> None:
    nproc, parallel, options = CASES[name]
    steps = 30 if name in LONG else STEPS
    reference = one_process(steps=steps, **{key: value for key, value in options.items() if key != "distributed"})
    ranks = rank_pool(nproc).run(train, _config(steps, parallel=parallel, **options))
    assert not compare(reference, ranks).problems


def test_pipeline_with_a_frozen_llm(one_process: Callable[..., Outcome], rank_pool: Pools) -> None:
    reference = one_process(freeze=True)
    ranks = rank_pool(2).run(train, _config(STEPS, freeze=True, parallel=ParallelConfig(pp=2)))
    assert not compare(reference, ranks).problems


def test_bf16_learns_under_every_layout(one_process: Callable[..., Outcome], rank_pool: Pools) -> None:
    reference = one_process(precision="bf16")
    config = _config(STEPS, precision="bf16", distributed=True, parallel=ParallelConfig(tp=2))
    result = rank_pool(4).run(train, config)[0]
    assert np.allclose(reference.losses, result.losses, atol=0.05)


def test_an_adapter_whose_gradient_is_not_summed_is_seen(one_process: Callable[..., Outcome], rank_pool: Pools) -> None:
    reference = one_process(**LORA)
    ranks = rank_pool(2).run(train, _config(STEPS, parallel=ParallelConfig(tp=2), **LORA), "adapter sum")
    assert compare(reference, ranks).problems
