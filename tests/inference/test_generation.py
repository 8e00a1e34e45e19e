"""Greedy generation against transformers, one by one and in batches; exact match against what is really written."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loongforge.inference.generation import greedy
from loongforge.inference.scoring import score_batches, summarize
from loongforge.model.execution import Runner
from tests.inference.cases import EOS, LONGEST, answered_batch, answers, prompts, runner_with_weights_of
from tests.support.tiny import IMAGE_TOKEN, tiny_config

CASES: dict[str, dict[str, Any]] = {
    "clip mlp llama": {},
    "siglip mlp qwen3": dict(vision="siglip", vision_changes=dict(post_norm=False), qk_norm=True, head_dim=24),
    "tied": dict(tie_embeddings=True),
}


def _pair(groups: Any, seed: int = 0, **options: Any) -> tuple[Runner, Any]:
    from tests.components.hf_models import llava

    config = tiny_config(**options)
    theirs = llava(config.model, seed)
    return runner_with_weights_of(config, groups, theirs), theirs


@torch.no_grad()
def _transformers_answer(theirs: Any, prompt: Any, eos_id: int) -> list[int]:
    ids = torch.tensor([prompt.ids])
    images = {"pixel_values": torch.from_numpy(prompt.images)} if len(prompt.images) else {}
    output = theirs.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **images,
        do_sample=False,
        max_new_tokens=LONGEST,
        eos_token_id=[eos_id, IMAGE_TOKEN],  # we end there too: it would need an image
        pad_token_id=eos_id,
    )
    new = output[0, len(prompt.ids) :].tolist()
    return new[:-1] if new[-1] in (eos_id, IMAGE_TOKEN) else new


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_equals_transformers(name: str, seed: int, groups: Any) -> None:
    runner, theirs = _pair(groups, seed, **CASES[name])
    ours = answers(runner, prompts())
    assert ours == [_transformers_answer(theirs, prompt, EOS) for prompt in prompts()]
    assert len({tuple(answer) for answer in ours}) == len(ours), "answers that do not depend on their prompts"


def test_an_answer_ends_before_the_end_token(groups: Any) -> None:
    runner, theirs = _pair(groups)
    free = answers(runner, prompts())
    eos = free[0][4]
    ours = answers(runner, prompts(), eos_id=eos)
    assert ours == [_transformers_answer(theirs, prompt, eos) for prompt in prompts()]
    assert ours[0] == free[0][: free[0].index(eos)]
    assert any(len(answer) > len(ours[0]) for answer in ours), "the other rows go on"


def test_a_batch_equals_its_prompts_alone(groups: Any) -> None:
    runner, _ = _pair(groups)
    together = answers(runner, prompts())
    assert together == [answers(runner, [prompt])[0] for prompt in prompts()]
    assert together[::-1] == answers(runner, prompts()[::-1])


def test_sequences_end_at_the_models_length(groups: Any) -> None:
    runner, _ = _pair(groups)
    some = prompts()
    longest = max(len(prompt.ids) for prompt in some) - 1
    new = greedy(runner, some, eos_id=EOS, max_new_tokens=LONGEST, max_length=longest)
    full = answers(runner, some)
    for prompt, answer, whole in zip(some, new, full, strict=True):
        assert answer == whole[: max(0, longest - len(prompt.ids))]
    assert answers(runner, some, longest=0) == [[] for _ in some]


def test_exact_match_is_what_greedy_decoding_writes(groups: Any) -> None:
    """Teacher-forced exactness of an answer is equality with the generated one; one changed token breaks it."""
    runner, _ = _pair(groups)
    some = prompts()
    free = answers(runner, some)
    eos = free[0][4]  # a token that some answers hold, so that those end
    written = [[*answer, eos] for answer in answers(runner, some, eos_id=eos) if len(answer) < LONGEST]
    ended = [prompt for prompt, a in zip(some, answers(runner, some, eos_id=eos), strict=True) if len(a) < LONGEST]
    assert written
    assert all(score.exact for score in score_batches(runner, [{0: answered_batch(ended, written)}]))
    for position in range(len(written[0])):
        changed = list(written[0])
        changed[position] = changed[position] % 200 + 5
        batch = answered_batch([*ended[:1], *some[1:3]], [changed, free[1], free[2]])
        assert [score.exact for score in score_batches(runner, [{0: batch}])] == [False, True, True]


def test_scores_are_log_probabilities_of_the_labels(groups: Any) -> None:
    runner, theirs = _pair(groups)
    some = prompts()[:4]
    replies = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14, EOS]]
    scores = score_batches(runner, [{0: answered_batch(some, replies)}])
    for prompt, reply, score in zip(some, replies, scores, strict=True):
        images = torch.from_numpy(prompt.images) if len(prompt.images) else None
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([prompt.ids + reply]), pixel_values=images).logits[0]
        logprobs = logits.log_softmax(-1)[len(prompt.ids) - 1 : -1]
        expected = logprobs.gather(1, torch.tensor(reply)[:, None]).squeeze(1)
        assert torch.allclose(torch.tensor(score.logprobs), expected, atol=1e-4)
        assert score.loss == pytest.approx(-expected.mean().item(), abs=1e-4)
    summary = summarize(runner, scores)
    total = sum(sum(score.logprobs) for score in scores)
    assert summary.loss == pytest.approx(-total / 11)
    assert (summary.samples, summary.label_tokens) == (4, 11)


def test_padding_rows_are_not_scored(groups: Any) -> None:
    runner, _ = _pair(groups)
    batch = answered_batch(prompts()[:3], [[5, 6], [7], [8]])
    batch.ids[1] = ""
    scores = score_batches(runner, [{0: batch}])
    assert [(score.id, len(score.logprobs)) for score in scores] == [("0", 2), ("2", 1)]
