"""The loss that evens out the load of experts against transformers, in one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from loongforge.components.registry import lookup
from loongforge.data.batch import Batch
from tests.components.hf_llms import hf_config, hf_model
from tests.components.test_llm_parity import LENGTH, _batch, _ours, _recipe, worst_gradient

WEIGHT = 0.7
NAMES = ["qwen3 moe", "qwen3 moe, some layers dense, weights as they are", "qwen3 moe, window"]
LENGTHS = [LENGTH, 17, 3, 9]


def _theirs(name: str, **changes: Any) -> Any:
    return hf_model(name, router_aux_loss_coef=WEIGHT, **{"output_router_logits": True, **changes})


def _runner(theirs: Any, groups: Any) -> tuple[Any, Any]:
    from loongforge.model.execution import Runner

    config = _recipe(theirs.config)
    return config, Runner(_ours(config, groups, theirs), groups)


def _rows(batch: Batch, size: int) -> list[Batch]:
    """Micro-batches of `size` rows."""
    parts = [slice(first, first + size) for first in range(0, len(batch.tokens), size)]
    return [
        Batch(batch.tokens[part], batch.labels[part], batch.images, batch.lengths[part], batch.ids[part])
        for part in parts
    ]


def _reference(theirs: Any, batch: Batch) -> tuple[float, float]:
    """Losses of the whole batch in one forward pass; its gradients are those of their weighted sum."""
    seen = torch.arange(LENGTH) < batch.lengths[:, None]
    found = theirs(input_ids=batch.tokens, attention_mask=seen.long(), output_router_logits=True)
    loss = F.cross_entropy(found.logits.flatten(0, 1), batch.labels.flatten())
    (loss + theirs.router_aux_loss_coef * found.aux_loss).backward()
    return loss.item(), found.aux_loss.item()


@pytest.mark.parametrize("size", [4, 2, 1])
@pytest.mark.parametrize("name", NAMES)
def test_equals_transformers_for_the_whole_batch(name: str, size: int, groups: Any) -> None:
    """Value and gradients, over real tokens alone, whether the step is one micro-batch or several."""
    theirs, batch = _theirs(name), _batch(5, LENGTHS)
    config, runner = _runner(theirs, groups)
    loss, aux = _reference(theirs, batch)
    found = runner.train({0: _rows(batch, size)}, int((batch.labels != -100).sum()))
    assert abs(found.item() - loss) < 1e-5, "the reported loss is the cross-entropy alone"
    assert abs(runner.experts.figures().loss - aux) < 1e-5
    assert worst_gradient(config, runner.model, theirs) < 1e-4


def test_a_packed_row_counts_as_its_documents(groups: Any) -> None:
    theirs, batch = _theirs(NAMES[0]), _batch(5, LENGTHS)
    config, runner = _runner(theirs, groups)
    _, aux = _reference(theirs, batch)
    rows = [(batch.tokens[i, :n], batch.labels[i, :n]) for i, n in enumerate(LENGTHS)]
    pad = torch.full((5,), 7)
    packed = Batch(
        torch.cat([*(tokens for tokens, _ in rows), pad])[None],
        torch.cat([*(labels for _, labels in rows), pad * 0 - 100])[None],
        batch.images,
        torch.tensor([sum(LENGTHS)]),
        ["packed"],
        torch.tensor([0, *LENGTHS, 5]).cumsum(0).int(),
    )
    runner.train({0: [packed]}, int((batch.labels != -100).sum()))
    assert abs(runner.experts.figures().loss - aux) < 1e-5
    assert worst_gradient(config, runner.model, theirs) < 1e-4


@pytest.mark.parametrize("size", [4, 2])
def test_recomputed_layers_count_once(size: int, groups: Any) -> None:
    theirs, batch = _theirs(NAMES[0]), _batch(6, LENGTHS)
    config = _recipe(theirs.config)
    config.trainer.recompute = "full"
    from loongforge.model.execution import Runner

    runner = Runner(_ours(config, groups, theirs), groups)
    _, aux = _reference(theirs, batch)
    runner.train({0: _rows(batch, size)}, int((batch.labels != -100).sum()))
    assert abs(runner.experts.figures().loss - aux) < 1e-5
    assert worst_gradient(config, runner.model, theirs) < 1e-4


def test_what_is_not_asked_for_is_not_added(groups: Any) -> None:
    """As in transformers: a weight alone does nothing where `output_router_logits` is false; the value is known."""
    theirs, batch = _theirs(NAMES[0], output_router_logits=False), _batch(5, LENGTHS)
    config, runner = _runner(theirs, groups)
    theirs.router_aux_loss_coef = 0.0
    _, aux = _reference(theirs, batch)
    runner.train({0: _rows(batch, 2)}, int((batch.labels != -100).sum()))
    assert abs(runner.experts.figures().loss - aux) < 1e-5
    assert worst_gradient(config, runner.model, theirs) < 1e-4


def test_a_mean_over_micro_batches_is_another_loss(groups: Any) -> None:
    """What peers compute: here the difference that the choice of the whole step makes is seen by the comparison."""
    theirs, batch = _theirs(NAMES[0]), _batch(5, LENGTHS)
    config, runner = _runner(theirs, groups)
    _reference(theirs, batch)
    for part in _rows(batch, 1):
        runner.train({0: [part]}, int((batch.labels != -100).sum()))
    assert worst_gradient(config, runner.model, theirs) > 1e-2


@pytest.mark.parametrize(("adds", "weight"), [(True, 0.02), (False, 0.001)])
def test_settings_map_both_ways(adds: bool, weight: float) -> None:
    values = hf_config(NAMES[0], router_aux_loss_coef=weight, output_router_logits=adds).to_dict()
    llm: Any = lookup("llm", "qwen3_moe").from_hf(values)  # type: ignore[attr-defined]
    assert (llm.router_aux_loss_coef, llm.output_router_logits) == (weight, adds)
    assert llm.routers.loss_weight == (weight if adds else 0)
    written = llm.to_hf()
    assert (written["router_aux_loss_coef"], written["output_router_logits"]) == (weight, adds)


def test_the_load_of_experts(groups: Any) -> None:
    """Every token to the same experts: the most loaded one has `experts / per token` times the mean."""
    theirs, batch = _theirs(NAMES[0]), _batch(5, LENGTHS)
    _, runner = _runner(theirs, groups)
    for layer in runner.model.llm.decoder.layers:
        layer.mlp.gate.forward = lambda x, real, gate=layer.mlp.gate: _always_the_first(gate, x, real)
    runner.train({0: [batch]}, int((batch.labels != -100).sum()))
    assert runner.experts.figures().imbalance == pytest.approx(8 / 3)


def _always_the_first(gate: Any, x: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = torch.arange(3).expand(len(x), 3)
    gate.routing.watch(gate.layer, F.linear(x, gate.weight).softmax(-1), real)
    gate.routing.note(gate.layer, chosen, real)
    return torch.full((len(x), 3), 1 / 3), chosen
