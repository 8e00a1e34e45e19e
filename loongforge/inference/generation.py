"""Greedy generation, under any layout. The whole sequence is computed again for each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from loongforge.model.execution import Runner


@dataclass(frozen=True)
class Prompt:
    """What is to be continued."""

    ids: list[int]
    """Token ids, image tokens expanded."""
    images: np.ndarray
    """float32 `[N, 3, H, W]`, in order of appearance; N may be 0."""


@dataclass
class _Inputs:
    tokens: torch.Tensor
    labels: torch.Tensor
    images: torch.Tensor


def greedy(
    runner: Runner, prompts: Sequence[Prompt], *, eos_id: int, max_new_tokens: int, max_length: int
) -> list[list[int]]:
    """Continues each prompt with the most likely tokens.

    Every rank of one data-parallel replica calls it with the same prompts, and gets the same answer.

    Args:
        runner: Of the model.
        prompts: At least one.
        eos_id: Ends an answer; not part of it.
        max_new_tokens: Longest answer.
        max_length: Longest sequence, prompt included.

    Returns:
        New tokens of each prompt.
    """
    rows = [list(prompt.ids) for prompt in prompts]
    pixels = np.concatenate([prompt.images for prompt in prompts])
    open_rows = set(range(len(rows)))
    for _ in range(max_new_tokens):
        open_rows -= {i for i in open_rows if len(rows[i]) >= max_length}
        if not open_rows:
            break
        best = _next_tokens(runner, rows, torch.from_numpy(pixels), pad_id=eos_id)
        for i in sorted(open_rows):
            if best[i] in (
                eos_id,
                runner.model.image_token,
            ):  # an image token would stand for an image that is not there
                open_rows.remove(i)
            else:
                rows[i].append(best[i])
    return [row[len(prompt.ids) :] for row, prompt in zip(rows, prompts, strict=True)]


def _next_tokens(runner: Runner, rows: list[list[int]], images: torch.Tensor, pad_id: int) -> list[int]:
    multiple = runner.groups.layout.tp  # sequence parallelism divides the length
    length = -(-max(map(len, rows)) // multiple) * multiple
    tokens = torch.tensor([row + [pad_id] * (length - len(row)) for row in rows])
    last = torch.tensor([(len(row) - 1) * len(rows) + i for i, row in enumerate(rows)])

    def pick(hidden: torch.Tensor, _: object) -> torch.Tensor:
        return runner.model.llm.best_tokens(runner.model.llm.logits(hidden, last.to(hidden.device)))

    device = runner.device
    batch = _Inputs(tokens.to(device), torch.full_like(tokens, -100).to(device), images.to(device))
    found = runner.forward([batch], pick)
    best = found[0] if found else torch.zeros(len(rows), dtype=torch.int64, device=device)
    return runner.from_last_stage(best).tolist()
