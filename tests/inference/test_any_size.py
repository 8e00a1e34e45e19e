"""Answers about images that keep their size: as in transformers, alone or in a batch, anew or from what is cached."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from loongforge.data.batch import Batch
from loongforge.inference.generation import Memory, Prompt, Settings, generate, greedy
from loongforge.model.execution import Runner
from tests.inference.conftest import groups
from tests.support.qwen import SAMPLES, any_size_batch, qwen_config

__all__ = ["groups"]

EOS = 1
SETTINGS = Settings(eos_id=EOS, max_new_tokens=8, max_length=200)
KINDS = ("qwen2", "qwen2_5")


def _both(kind: str, groups: Any) -> tuple[Runner, torch.nn.Module]:
    from tests.components.hf_qwen import qwen_vl
    from tests.inference.cases import runner_with_weights_of

    config = qwen_config(kind)
    theirs = qwen_vl(config.model, 3)
    return runner_with_weights_of(config, groups, theirs), theirs


def _prompts() -> list[Prompt]:
    """The samples one by one: without, with one, with several images."""
    found = []
    for sample in SAMPLES:
        batch = any_size_batch([sample])
        ids = batch.tokens[0, : int(batch.lengths[0])].tolist()
        found.append(Prompt(ids, batch.images.numpy(), batch.shapes))
    return found


@torch.no_grad()
def _theirs(model: torch.nn.Module, prompt: Prompt, count: int) -> tuple[list[int], float]:
    from tests.components.test_qwen_vl_parity import answer

    ids, margin = list(prompt.ids), np.inf
    for _ in range(count):
        tokens = torch.tensor([ids])
        shapes = list(prompt.shapes or [])
        batch = Batch(tokens, tokens, torch.from_numpy(prompt.images), torch.tensor([len(ids)]), ["a"], shapes=shapes)
        best = answer(model, batch)[0, -1].topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    return ids[len(prompt.ids) :], margin


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_answered_as_transformers_does(kind: str, groups: Any) -> None:
    """Rows end at different positions, whatever their lengths."""
    runner, theirs = _both(kind, groups)
    some = [prompt for prompt in _prompts() if prompt.shapes]
    together = greedy(runner, some, eos_id=EOS, max_new_tokens=8, max_length=200)
    compared = 0
    for prompt, ours in zip(some, together, strict=True):
        expected, margin = _theirs(theirs, prompt, 8)
        if margin > 1e-3:
            compared += 1
            assert ours == (expected[: expected.index(EOS)] if EOS in expected else expected)
    assert compared >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_goes_on_behind_images(kind: str, groups: Any) -> None:
    """Each turn brings images; what is cached counts positions on from behind the images before."""
    runner, _ = _both(kind, groups)
    memory, some = Memory(), _prompts()
    ids, pixels, shapes = [5], some[1].images, []
    for turn in (some[1], some[0], some[2], some[4]):
        ids, pixels = [*ids, 7, *turn.ids], np.concatenate([pixels, turn.images])
        shapes = [*shapes, *(turn.shapes or [])]
        question = Prompt(ids, pixels, shapes)
        (answer,) = generate(runner, [question], SETTINGS, memory=memory)
        assert answer.tokens == generate(runner, [question], SETTINGS)[0].tokens
        ids = ids + answer.tokens
