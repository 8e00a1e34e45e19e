"""Held-out loss and exact match, sample by sample, under any layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from loongforge.data.batch import Batch
from loongforge.model.execution import Runner
from loongforge.model.vlm import IGNORED
from loongforge.parallel.session import gather_lists, sum_over_world


@dataclass(frozen=True)
class SampleScore:
    """What the model makes of one sample."""

    id: str
    logprobs: list[float]
    """Log-probability of every label token, in nats."""
    exact: bool
    """Every label token is the most likely one. Greedy decoding from the prompt then writes exactly the answer and
    its end token, and otherwise does not: its first wrong token is the first label that is not the most likely."""

    @property
    def loss(self) -> float:
        """Mean over the label tokens, in nats."""
        return -sum(self.logprobs) / len(self.logprobs)


@dataclass(frozen=True)
class Summary:
    """Of a whole evaluation, over all ranks."""

    loss: float
    """Mean over label tokens, in nats."""
    exact_match: float
    """Share of samples answered exactly."""
    samples: int
    label_tokens: int


def score_batches(runner: Runner, batches: Iterable[Mapping[int, Batch]]) -> list[SampleScore]:
    """Scores the batches of this rank's LLM replica; empty except on the last pipeline stage.

    Args:
        runner: Of the model.
        batches: By LLM replica, of all replicas that this rank works on.
    """
    place = runner.groups.place
    scores = []
    for loaded in batches:
        by_replica = {replica: batch.to(runner.device) for replica, batch in loaded.items()}
        image_rows = runner.encode({replica: [batch] for replica, batch in by_replica.items()})
        if place is not None:
            for part in runner.forward([by_replica[place.dp]], image_rows, lambda hidden, b: _score(runner, hidden, b)):
                scores += part
    return scores


def _score(runner: Runner, hidden: torch.Tensor, batch: Batch) -> list[SampleScore]:
    logits, targets = runner.model.label_logits(hidden, batch.labels, gathered=True)
    logprobs = (-runner.model.llm.token_losses(logits, targets)).tolist()
    right = (runner.model.llm.best_tokens(logits) == targets).tolist()
    scores, start = [], 0
    for name, count in zip(batch.ids, (batch.labels != IGNORED).sum(1).tolist(), strict=True):
        part = slice(start, start + count)
        start += count
        if name:
            scores.append(SampleScore(name, logprobs[part], all(right[part])))
    return scores


def _counts_here(runner: Runner) -> bool:
    """One rank of each data-parallel replica reports."""
    place = runner.groups.place
    return runner.model.post_process and place is not None and (place.tp, place.cp) == (0, 0)


def summarize(runner: Runner, scores: list[SampleScore]) -> Summary:
    """Adds up all ranks' scores. Collective over the world."""
    sums = torch.zeros(4, dtype=torch.float64)
    if _counts_here(runner):
        loss, tokens = -sum(sum(s.logprobs) for s in scores), sum(len(s.logprobs) for s in scores)
        sums += torch.tensor([loss, tokens, sum(s.exact for s in scores), len(scores)], dtype=torch.float64)
    loss, tokens, exact, samples = sum_over_world(sums).tolist()
    return Summary(loss / max(tokens, 1), exact / max(samples, 1), int(samples), int(tokens))


def gather_scores(runner: Runner, scores: list[SampleScore]) -> list[SampleScore]:
    """All data-parallel ranks' scores. Collective over the world."""
    return gather_lists(scores if _counts_here(runner) else [])
