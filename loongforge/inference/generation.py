"""Greedy generation, under any layout. The whole sequence is computed again for each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from loongforge.model.execution import Runner
from loongforge.parallel.images import Shapes
from loongforge.parallel.routes import ImagePlan
from loongforge.parallel.session import gather_lists


@dataclass(frozen=True)
class Prompt:
    """What is to be continued."""

    ids: list[int]
    """Token ids, image tokens expanded."""
    images: np.ndarray
    """float32 `[N, 3, H, W]`, in order of appearance; N may be 0. With `shapes`: their rows of pixels."""
    shapes: Shapes | None = None
    """Of the images; None: they are of the encoder's one size."""


@dataclass
class _Inputs:
    tokens: torch.Tensor
    labels: torch.Tensor
    images: torch.Tensor
    cu_seqlens: torch.Tensor | None = None
    image_plan: ImagePlan | None = None
    shapes: Shapes | None = None


def greedy(
    runner: Runner, prompts: Sequence[Prompt], *, eos_id: int, max_new_tokens: int, max_length: int
) -> list[list[int]]:
    """Continues each prompt with the most likely tokens. Collective over the world.

    The first LLM replica and the encoders that serve it do the work; images are encoded once.

    Args:
        runner: Of the model.
        prompts: The same on every rank that works on the first replica; others may pass none.
        eos_id: Ends an answer; not part of it.
        max_new_tokens: Longest answer.
        max_length: Longest sequence, prompt included.

    Returns:
        New tokens of each prompt, on every rank.
    """
    groups = runner.groups
    new: list[list[int]] = []
    if prompts and 0 in groups.replicas:
        loop = _Loop(runner, prompts, eos_id, max_new_tokens, max_length)
        image_rows = runner.encode({0: [loop.batch()]})
        if groups.place is not None and groups.place.dp == 0:
            new = loop.run(image_rows)
    return gather_lists(new if groups.reported == 0 else [])


class _Loop:
    """Growing rows of one LLM replica."""

    def __init__(
        self, runner: Runner, prompts: Sequence[Prompt], eos_id: int, max_new_tokens: int, max_length: int
    ) -> None:
        self.runner, self.eos_id, self.max_new_tokens, self.max_length = runner, eos_id, max_new_tokens, max_length
        self.prompt_lengths = [len(prompt.ids) for prompt in prompts]
        self.rows = [list(prompt.ids) for prompt in prompts]
        self.images = torch.from_numpy(np.concatenate([prompt.images for prompt in prompts])).to(runner.device)
        known = [prompt.shapes for prompt in prompts if prompt.shapes is not None]
        self.shapes = [shape for shapes in known for shape in shapes] if known else None
        layout = runner.groups.layout
        # where ranks divide the rows, a row that grew would move image tokens from rank to rank
        divided = layout.sequence_parallel or layout.llm.cp > 1
        self.shortest = min(max(self.prompt_lengths) + max_new_tokens, max_length) if divided else 1

    def batch(self) -> _Inputs:
        """The rows so far, padded."""
        multiple = self.runner.groups.layout.sequence_multiple
        length = -(-max(self.shortest, *map(len, self.rows)) // multiple) * multiple
        tokens = torch.tensor([row + [self.eos_id] * (length - len(row)) for row in self.rows])
        tokens = tokens.to(self.runner.device)
        return _Inputs(tokens, torch.full_like(tokens, -100), self.images, shapes=self.shapes)

    def run(self, image_rows: Sequence[torch.Tensor | None]) -> list[list[int]]:
        """Appends tokens until every row has ended; returns the new ones of each."""
        open_rows = set(range(len(self.rows)))
        spec = self.runner.model.images
        for _ in range(self.max_new_tokens):
            open_rows -= {i for i in open_rows if len(self.rows[i]) >= self.max_length}
            if not open_rows:
                break
            best = self._next_tokens(image_rows)
            for i in sorted(open_rows):
                # an image token would stand for an image that is not there
                if best[i] == self.eos_id or (spec is not None and best[i] == spec.token):
                    open_rows.remove(i)
                else:
                    self.rows[i].append(best[i])
        return [row[length:] for row, length in zip(self.rows, self.prompt_lengths, strict=True)]

    def _next_tokens(self, image_rows: Sequence[torch.Tensor | None]) -> list[int]:
        runner, rows = self.runner, self.rows
        last = torch.tensor([(len(row) - 1) * len(rows) + i for i, row in enumerate(rows)])

        def pick(hidden: torch.Tensor, _: object) -> torch.Tensor:
            logits = runner.model.llm.logits(hidden, last.to(hidden.device), gathered=True)
            return runner.model.llm.best_tokens(logits)

        found = runner.forward([self.batch()], image_rows, pick)
        best = found[0] if found else torch.zeros(len(rows), dtype=torch.int64, device=runner.device)
        return runner.from_last_stage(best).tolist()
