"""The next token of each row: the most likely one, or one drawn from what temperature, top-k and top-p leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen."""

    temperature: float = 0.0
    """Divides the logits before tokens are drawn; 0: the most likely token is taken."""
    top_p: float = 1.0
    """Draw among the most likely tokens that together have this probability (arXiv 1904.09751)."""
    top_k: int = 0
    """Draw among so many most likely tokens; 0: all."""
    seed: int = 0
    """Of the draws."""


GREEDY = Sampling()
"""The most likely token."""


@dataclass(frozen=True)
class Place:
    """Which token of which answer is drawn; the draw depends on this and the seed alone."""

    key: int
    """Of the prompt."""
    number: int
    """Of the token in its answer."""


def uniform(seed: int, place: Place) -> float:
    """A number in [0, 1) that depends on nothing else: neither on the layout nor on what else is generated."""
    bits = np.random.Philox(key=np.array([seed, place.key], np.uint64), counter=[place.number, 0, 0, 0])
    return float(np.random.Generator(bits).random())


def next_tokens(llm: Any, logits: torch.Tensor, sampling: Sampling, places: Sequence[Place]) -> torch.Tensor:
    """The next token of each row, the same on every tensor-parallel rank.

    Args:
        llm: Language model; its ranks each have a part of the vocabulary.
        logits: `[B, V / tp]`.
        sampling: How to choose.
        places: Of the tokens to be chosen.

    Returns:
        int64 `[B]`.
    """
    if sampling.temperature == 0:
        return llm.best_tokens(logits)
    probabilities = kept(whole_vocabulary(logits, llm.tp_group), sampling)
    draws = [uniform(sampling.seed, place) for place in places]
    return drawn(probabilities, torch.tensor(draws, dtype=torch.float64, device=logits.device))


def whole_vocabulary(logits: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """`[B, V / tp]` -> `[B, V]`."""
    if group.size() == 1:
        return logits
    parts = [torch.empty_like(logits) for _ in range(group.size())]
    dist.all_gather(parts, logits.contiguous(), group=group)
    return torch.cat(parts, -1)


def kept(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """float64 `[B, V]`: probabilities of what may be drawn, 0 elsewhere; they need not add up to 1."""
    scores = logits.double() / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        lowest = scores.topk(sampling.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < lowest, -torch.inf)
    probabilities = scores.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(stable=True, dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.masked_fill(before >= sampling.top_p, 0.0)
        probabilities = torch.zeros_like(ordered).scatter(-1, order, ordered)
    return probabilities


def drawn(probabilities: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """int64 `[B]`: the token at which the sum of probabilities, in the order of the vocabulary, passes each draw."""
    sums = probabilities.cumsum(-1)
    passed = (sums > draws[:, None] * sums[:, -1:]) & (probabilities > 0)
    return passed.int().argmax(-1)
