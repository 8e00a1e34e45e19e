"""What would help where memory has run out is what the planner predicts, largest first."""

from __future__ import annotations

from dataclasses import replace

from loongforge.parallel.layout import Layout
from loongforge.planning.memory import memory_on
from loongforge.planning.relief import relief
from loongforge.planning.workload import Costs, Workload
from tests.support.tiny import tiny_config


def test_each_saving_is_the_difference_of_two_plans() -> None:
    config = tiny_config()
    layout = Layout.from_model(config.model, 4)
    before, found = relief(config, layout)
    saved = {one.setting: one.saved for one in found}
    assert list(saved.values()) == sorted(saved.values(), reverse=True)
    wanted = {"trainer.recompute=full", "trainer.precision=bf16", "optimizer.distributed=true"}
    assert wanted | {"trainer.micro_batch_size=1", "model.llm.parallel.tp=2", "model.llm.parallel.pp=2"} <= set(saved)
    other = replace(config, trainer=replace(config.trainer, recompute="full"))
    kept = [memory_on(Costs(one, Workload.from_recipe(one)), layout, 0) for one in (config, other)]
    assert saved["trainer.recompute=full"] == kept[0].total - kept[1].total > 0
    assert before.total == kept[0].total - kept[0].logits


def test_what_is_set_or_does_not_fit_is_not_advised() -> None:
    config = tiny_config(distributed=True, precision="bf16")
    config.trainer.micro_batch_size = 1
    config.trainer.recompute = "full"
    _, found = relief(config, Layout.from_model(config.model, 1))
    keys = {one.setting.split("=")[0] for one in found}
    assert not keys & {"optimizer.distributed", "trainer.precision", "trainer.micro_batch_size", "trainer.recompute"}
    assert not any(key.startswith("model.llm.parallel") for key in keys)  # there is one rank


def test_whole_logits_are_named_where_they_are_made() -> None:
    config = tiny_config(vocab_size=50000)
    layout = Layout.from_model(config.model, 1)
    before, found = relief(config, layout, whole_logits=True)
    assert found[0].setting in ("kernels.linear_cross_entropy=torch", "trainer.micro_batch_size=1")
    assert {one.setting: one.saved for one in found}["kernels.linear_cross_entropy=torch"] == before.logits > 0
    assert not any(one.setting.startswith("kernels") for one in relief(config, layout)[1])


def test_packed_rows_are_made_shorter() -> None:
    config = tiny_config()
    config.packing.enabled, config.trainer.micro_batch_tokens = True, 512
    _, found = relief(config, Layout.from_model(config.model, 1))
    assert "trainer.micro_batch_tokens=256" in {one.setting for one in found}
