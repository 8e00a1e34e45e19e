"""What is cached equals what is computed anew: logits of every token, rows of any length, conversations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from loongforge.components.llm.llama import rope
from loongforge.components.transformer import cache
from loongforge.components.transformer.mlp import FeedForward
from loongforge.inference.generation import Completion, Memory, Prompt, Settings, generate
from loongforge.inference.rows import Rows
from loongforge.model.assembly import build_model
from loongforge.model.execution import Runner
from tests.inference.cases import EOS, answers, prompts
from tests.support.tiny import IMAGE_TOKEN, NUM_PATCHES, VOCAB, tiny_config

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": dict(qk_norm=True, head_dim=24, tie_embeddings=True),
    "mmca": dict(attention="mmca"),
    "window": dict(sliding_window=6, window_layers=[0, 2, 3]),
    "experts": dict(num_experts=8),
}


def _runner(groups: Any, name: str) -> Runner:
    config = tiny_config(**MODELS[name])
    parts: list[Any] = [config.model.vision, config.model.projector, config.model.llm]
    for part in parts:
        part.init_std = 0.2  # so that every parameter matters
    return Runner(build_model(config, groups, image_token=IMAGE_TOKEN), groups)


def _anew(runner: Runner, rows: list[list[int]], images: torch.Tensor) -> list[torch.Tensor]:
    """Logits `[T, V]` of each row, computed alone and without a cache."""
    found, before = [], 0
    for row in rows:
        count = row.count(IMAGE_TOKEN) // NUM_PATCHES
        batch = Rows(runner, 1, 128, EOS).batch([row], images[before : before + count])
        before += count
        hidden = runner.forward([batch], runner.encode({0: [batch]}), lambda hidden, _: hidden)[0]
        found.append(runner.model.llm.logits(hidden, torch.arange(len(row)), gathered=True))
    return found


def _cached(runner: Runner, starts: list[list[int]], rest: list[list[int]], images: torch.Tensor) -> torch.Tensor:
    """Logits `[steps, B, V]` behind the prompts, and behind each of the tokens that follow."""
    rows = Rows(runner, len(starts), 128, EOS)
    batch = rows.batch(starts, images)
    with runner.evaluating():
        found = [rows.extend(batch, [len(row) for row in starts], runner.encode({0: [batch]})[0])]
        for step in range(len(rest[0])):
            batch = rows.batch([row[step : step + 1] for row in rest], images[:0])
            found.append(rows.extend(batch, [1] * len(rest)))
    return torch.stack(found)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_equal_those_of_whole_sequences(name: str, groups: Any) -> None:
    runner, some = _runner(groups, name), prompts()
    images = torch.from_numpy(np.concatenate([prompt.images for prompt in some]))
    starts = [prompt.ids for prompt in some]
    rest = torch.randint(4, VOCAB, (len(some), 20), generator=torch.Generator().manual_seed(1)).tolist()
    found = _cached(runner, starts, rest, images)
    expected = _anew(runner, [a + b for a, b in zip(starts, rest, strict=True)], images)
    for row, logits in enumerate(expected):
        theirs = logits[len(starts[row]) - 1 :]
        assert theirs.std() > 0.5
        assert torch.allclose(found[:, row], theirs, atol=1e-4), row


@pytest.mark.parametrize("rows", [1, 2])
@torch.no_grad()
def test_new_tokens_run_through_their_own_experts_alone(
    rows: int, groups: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, none = _runner(groups, "experts"), torch.zeros(0, 3, 32, 32)
    starts = [[5, 6, 7, 8], [9, 10]][:rows]
    rest = torch.randint(4, VOCAB, (rows, 20), generator=torch.Generator().manual_seed(4)).tolist()
    expected = _anew(runner, [a + b for a, b in zip(starts, rest, strict=True)], none)
    seen: list[int] = []

    def counting(self: FeedForward, hidden: torch.Tensor) -> Any:
        if self.is_expert:
            seen.append(len(hidden))
        return forward(self, hidden)

    forward = FeedForward.forward
    monkeypatch.setattr(FeedForward, "forward", counting)
    found = _cached(runner, starts, rest, none)
    for row, logits in enumerate(expected):
        assert torch.allclose(found[:, row], logits[len(starts[row]) - 1 :], atol=1e-4), row
    assert min(seen) == 1, "an expert without rows was called"


@pytest.mark.parametrize("starts", [[[5, 6, 7]], [[5, 6, 7], [8, 9]], [[5, 6, 7], list(range(20, 40))]], ids=len)
@torch.no_grad()
def test_angles_go_on_where_their_table_ends(
    starts: list[list[int]], groups: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one row, of rows that end near each other, of rows that do not."""
    runner, none = _runner(groups, "llama"), torch.zeros(0, 3, 32, 32)
    rest = torch.randint(4, VOCAB, (len(starts), 30), generator=torch.Generator().manual_seed(2)).tolist()
    monkeypatch.setattr(rope.NearbyAngles, "SIZE", 7)
    found = _cached(runner, starts, rest, none)
    for row, logits in enumerate(_anew(runner, [a + b for a, b in zip(starts, rest, strict=True)], none)):
        assert torch.allclose(found[:, row], logits[len(starts[row]) - 1 :], atol=1e-4), row


def test_a_position_that_is_off_by_one_is_noticed(groups: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, starts, rest = _runner(groups, "llama"), [[5, 6, 7, 8]], [[9, 10, 11]]
    none = torch.zeros(0, 3, 32, 32)
    right = _cached(runner, starts, rest, none)
    advance = cache.KVCache.advance

    def off(kept: cache.KVCache, *counts: Any) -> None:
        advance(kept, *counts)
        kept.next_positions = [position + 1 for position in kept.next_positions]

    monkeypatch.setattr(cache.KVCache, "advance", off)
    assert not torch.allclose(_cached(runner, starts, rest, none)[1:], right[1:], atol=1e-2)


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_equals_its_prompts_alone(name: str, groups: Any) -> None:
    runner, some = _runner(groups, name), prompts(9)
    together = answers(runner, some, longest=24)
    assert together == [answers(runner, [prompt], longest=24)[0] for prompt in some]
    ends = answers(runner, some, eos_id=together[0][3], longest=24)
    assert ends == [answers(runner, [prompt], eos_id=together[0][3], longest=24)[0] for prompt in some]
    assert len(set(map(len, ends))) > 1, "rows end at different times"


@pytest.mark.parametrize("name", MODELS)
def test_a_conversation_goes_on_from_what_is_cached(name: str, groups: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn holds the turns before it; the second and third have images, the fourth tells the second anew."""
    runner, some = _runner(groups, name), prompts()
    settings, memory = Settings(EOS, 6, 128), Memory()
    lengths = []
    original = Rows.batch

    def watched(rows: Rows, new: Any, *images: Any) -> Any:
        lengths.append(len(new[0]))
        return original(rows, new, *images)

    monkeypatch.setattr(Rows, "batch", watched)
    ids, images = list(some[1].ids), some[1].images
    for turn, prompt in enumerate([None, some[2], some[4], some[3]]):
        if prompt is not None:
            ids, images = [*ids, 7, 8, *prompt.ids], np.concatenate([images, prompt.images])
        if turn == 3:
            ids[len(some[1].ids)] = 99
        lengths.clear()
        question = Prompt(ids, images)
        answer = generate(runner, [question], settings, memory=memory)[0]
        first = lengths[0]
        assert answer.tokens == generate(runner, [question], settings)[0].tokens, turn
        assert first == len(ids) if turn in (0, 3) else first < len(ids) - len(answer.tokens), turn
        ids = ids + answer.tokens


def test_a_conversation_whose_last_tokens_change_is_cut(groups: Any) -> None:
    runner, settings, memory = _runner(groups, "mmca"), Settings(EOS, 6, 128), Memory()
    first = prompts()[0]
    generate(runner, [first], settings, memory=memory)
    assert len(memory.ids) == len(first.ids) + 5
    again = Prompt([*first.ids, 50, 51, 52], first.images)
    answer = generate(runner, [again], settings, memory=memory)[0]
    assert answer == generate(runner, [again], settings)[0]
    assert isinstance(answer, Completion)
