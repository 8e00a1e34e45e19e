"""Drawn tokens: their probabilities, what top-k and top-p leave, and what a draw depends on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from loongforge.inference.sampling import Place, Sampling, drawn, kept, next_tokens, uniform
from loongforge.model.assembly import build_model
from loongforge.model.execution import Runner
from tests.inference.cases import answers, prompts
from tests.inference.cases import drawn as drawn_answers
from tests.support.tiny import IMAGE_TOKEN, tiny_config

ONE: Any = SimpleNamespace(size=lambda: 1)


def _logits() -> torch.Tensor:
    return torch.randn(4, 50, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 0.7), (0.5, 5, 1.0), (2.0, 8, 0.5), (1.0, 0, 1e-9)]
)
def test_what_may_be_drawn_is_that_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    scores: Any = _logits().double() / temperature
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)  # type: ignore[arg-type]
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)  # type: ignore[arg-type]
    found = kept(_logits(), Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    assert torch.allclose(found / found.sum(-1, keepdim=True), scores.softmax(-1), atol=1e-12)


def test_tokens_come_as_often_as_they_are_probable() -> None:
    probabilities = kept(_logits()[:1], Sampling(temperature=1.0, top_p=0.9))
    number = 20000
    draws = torch.tensor([uniform(3, Place(1, i)) for i in range(number)], dtype=torch.float64)
    tokens = drawn(probabilities.expand(number, -1), draws)
    found = torch.bincount(tokens, minlength=50) / number
    assert torch.allclose(found.double(), probabilities[0] / probabilities.sum(), atol=0.012)
    assert not found[probabilities[0] == 0].any()


def test_a_draw_at_the_borders_is_a_token_that_may_be_drawn() -> None:
    probabilities = torch.tensor([[0.0, 0.3, 0.0, 0.2, 0.0]], dtype=torch.float64).expand(2, -1)
    assert drawn(probabilities, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 3]


def test_a_draw_depends_on_seed_prompt_and_place_alone() -> None:
    llm: Any = SimpleNamespace(tp_group=ONE)
    logits, sampling = _logits(), Sampling(temperature=3.0, seed=5)
    places = [Place(key, number) for key, number in ((1, 0), (1, 1), (2**64 - 1, 0), (9, 3))]
    together = next_tokens(llm, logits, sampling, places).tolist()
    alone = [next_tokens(llm, logits[i : i + 1], sampling, [place]).item() for i, place in enumerate(places)]
    assert together == alone
    assert len({uniform(seed, Place(key, n)) for seed in (0, 1) for key in (0, 1) for n in (0, 1)}) == 8


def test_drawn_answers_do_not_depend_on_the_batch(groups: Any) -> None:
    runner = Runner(build_model(tiny_config(), groups, image_token=IMAGE_TOKEN), groups)
    some = prompts()
    together = drawn_answers(runner, some)
    assert together == [drawn_answers(runner, [prompt])[0] for prompt in some]
    assert together[::-1] == drawn_answers(runner, some[::-1])
    assert together != drawn_answers(runner, some, seed=8)
    assert drawn_answers(runner, some, top_k=1) == answers(runner, some, longest=5)
