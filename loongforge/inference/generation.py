"""Generation under any layout, with the keys and values of earlier tokens cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from loongforge.inference.rows import Rows
from loongforge.inference.sampling import GREEDY, Place, Sampling, next_tokens
from loongforge.model.execution import Runner
from loongforge.parallel.images import Shapes, total
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
    key: int = 0
    """Tells the draws of this prompt's answer from those of others."""

    @property
    def num_images(self) -> int:
        """Its images."""
        return len(self.images) if self.shapes is None else len(self.shapes)

    def behind(self, tokens: int, images: int) -> Prompt:
        """What follows so many tokens and images."""
        if self.shapes is None:
            return replace(self, ids=self.ids[tokens:], images=self.images[images:])
        rows = total(self.shapes[:images], "pixels")
        return replace(self, ids=self.ids[tokens:], images=self.images[rows:], shapes=self.shapes[images:])


@dataclass(frozen=True)
class Settings:
    """How answers are made, and where they end."""

    eos_id: int
    """Ends an answer; not part of it."""
    max_new_tokens: int
    """Longest answer."""
    max_length: int
    """Longest sequence, prompt included."""
    sampling: Sampling = GREEDY
    """How tokens are chosen."""
    ends: Callable[[list[int]], bool] | None = None
    """Whether an answer ends with the tokens that it has; the same on every rank."""
    on_token: Callable[[int, list[int]], None] | None = None
    """Called with the number of a prompt and the tokens of its answer so far, on the ranks of its replica."""


@dataclass
class Completion:
    """An answer."""

    tokens: list[int] = field(default_factory=list)
    finish: Literal["eos", "length", "stop"] = "length"
    """Why it ends: the end token, a limit, or `Settings.ends`."""


def greedy(
    runner: Runner, prompts: Sequence[Prompt], *, eos_id: int, max_new_tokens: int, max_length: int
) -> list[list[int]]:
    """The most likely continuation of each prompt, made by the first LLM replica; see `generate`."""
    settings = Settings(eos_id, max_new_tokens, max_length)
    return [completion.tokens for completion in generate(runner, prompts, settings)]


def generate(
    runner: Runner,
    prompts: Sequence[Prompt],
    settings: Settings,
    *,
    shared: bool = False,
    memory: Memory | None = None,
) -> list[Completion]:
    """Continues each prompt. Collective over the world.

    Each prompt is computed once, then each new token alone. Images are encoded once.

    Args:
        runner: Of the model.
        prompts: The same on every rank that works on the first replica, or on one that shares experts with it
            (`Layout.replicas_together`); others may pass none.
        settings: How.
        shared: All LLM replicas take a share; the prompts are then the same on every rank.
        memory: Of the conversation that the only prompt continues; the same on every rank.

    Returns:
        An answer to each prompt, on every rank.
    """
    groups = runner.groups
    together = groups.layout.replicas_together  # replicas that share experts answer the same
    share = groups.layout.dp // together if shared else 1
    part_of = {replica: replica // together for replica in groups.replicas}
    parts = {r: _open(prompts, settings, part, share) for r, part in part_of.items() if part < share}
    lines = {r: _Line(runner, prompts, numbers, settings, memory) for r, numbers in parts.items() if numbers}
    done: dict[int, Completion] = {}
    with runner.evaluating():
        image_rows = runner.encode({replica: [line.prefill] for replica, line in lines.items()}) if lines else []
        place = groups.place
        if place is not None and place.dp in lines:
            done = lines[place.dp].run(image_rows[0] if image_rows else None)
    found = dict(gather_lists(list(done.items()) if groups.reported is not None else []))
    total = max(gather_lists([len(prompts)]))
    completions = [found.get(number, Completion()) for number in range(total)]
    if memory is not None and found:
        memory.end(prompts[0], completions[0])
    return completions


def _open(prompts: Sequence[Prompt], settings: Settings, replica: int, share: int) -> list[int]:
    """Numbers of the prompts of a replica that have room for an answer."""
    if settings.max_new_tokens < 1:
        return []
    return [n for n in range(replica, len(prompts), share) if len(prompts[n].ids) < settings.max_length]


class Memory:
    """What is cached of one conversation, so that its next turn is computed from where it differs.

    That is behind its last image: a template that writes earlier turns anew is computed from the beginning. So is every
    turn under context parallelism, whose ranks share a row's first tokens in another way than those that follow.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        """Tokens that are cached."""
        self._rows: Rows | None = None
        self._images = 0

    def begin(self, runner: Runner, prompt: Prompt, settings: Settings) -> tuple[Rows, Prompt]:
        """The row, cut to what it shares with the prompt, and the part of the prompt that it lacks."""
        pairs = zip(self.ids, prompt.ids[:-1], strict=False)  # one token at least has to be computed
        same = next((place for place, (old, new) in enumerate(pairs) if old != new), None)
        same = min(len(self.ids), len(prompt.ids) - 1) if same is None else same
        spec = runner.model.images
        differs = spec is not None and spec.token in self.ids[same:]
        if self._rows is None or not same or differs or runner.groups.layout.llm.cp > 1:
            self._rows, self._images, same = Rows(runner, 1, settings.max_length, settings.eos_id), 0, 0
        else:
            self._rows.cache.cut(same)
        return self._rows, prompt.behind(same, self._images)

    def end(self, prompt: Prompt, answer: Completion) -> None:
        """Notes what has been cached: all but the last token, which nothing has followed from yet."""
        assert self._rows is not None
        cached = answer.tokens if answer.finish == "eos" else answer.tokens[:-1]
        self.ids, self._images = prompt.ids + cached, prompt.num_images
        self._rows.cache.catch_up(len(self.ids))


class _Line:
    """Some prompts on one replica, continued together."""

    def __init__(
        self,
        runner: Runner,
        prompts: Sequence[Prompt],
        numbers: list[int],
        settings: Settings,
        memory: Memory | None,
    ) -> None:
        self.runner, self.settings, self.numbers = runner, settings, numbers
        self.prompts = prompts
        if memory is None:
            new = [prompts[n] for n in numbers]
            longest = max(len(prompt.ids) for prompt in new) + settings.max_new_tokens
            self.rows = Rows(runner, len(numbers), min(longest, settings.max_length), settings.eos_id)
        else:
            self.rows, rest = memory.begin(runner, prompts[0], settings)
            new = [rest]
        self.counts = [len(prompt.ids) for prompt in new]
        images = torch.from_numpy(np.concatenate([prompt.images for prompt in new])).to(runner.device)
        known = [prompt.shapes for prompt in new if prompt.shapes is not None]
        shapes = [shape for part in known for shape in part] if known else None
        self.prefill = self.rows.batch([prompt.ids for prompt in new], images, shapes)
        self.answers = {number: Completion() for number in numbers}

    @torch.inference_mode()
    def run(self, image_rows: torch.Tensor | None) -> dict[int, Completion]:
        """Answers by number of their prompts."""
        logits = self.rows.extend(self.prefill, self.counts, image_rows)
        while True:
            tokens = self._choose(logits)
            is_open = [self._take(number, token) for number, token in zip(self.numbers, tokens.tolist(), strict=True)]
            if not any(is_open):
                return self.answers
            if 2 * sum(is_open) <= len(is_open):  # until then, rows that have ended are carried along
                kept = [row for row, goes_on in enumerate(is_open) if goes_on]
                self.rows.cache.keep(kept)
                self.numbers, tokens = [self.numbers[row] for row in kept], tokens[kept]
                is_open = [True] * len(kept)
            logits = self.rows.extend(self.rows.batch_of_one(tokens), [int(goes_on) for goes_on in is_open])

    def _choose(self, logits: torch.Tensor | None) -> torch.Tensor:
        """The next token of each row, int64 `[B]`, on every pipeline stage."""
        runner = self.runner
        if logits is None:
            chosen = torch.zeros(len(self.numbers), dtype=torch.int64, device=runner.device)
        else:
            places = [Place(self.prompts[n].key, len(self.answers[n].tokens)) for n in self.numbers]
            chosen = next_tokens(runner.model.llm, logits, self.settings.sampling, places)
        return runner.from_last_stage(chosen)

    def _take(self, number: int, token: int) -> bool:
        """Whether an answer goes on behind this token."""
        answer, settings = self.answers[number], self.settings
        if answer.finish != "length" or self._is_full(number):
            return False
        spec = self.runner.model.images
        # an image token would stand for an image that is not there
        if token == settings.eos_id or (spec is not None and token == spec.token):
            answer.finish = "eos"
            return False
        answer.tokens.append(token)
        if settings.on_token is not None:
            settings.on_token(number, answer.tokens)
        if settings.ends is not None and settings.ends(answer.tokens):
            answer.finish = "stop"
        return answer.finish == "length" and not self._is_full(number)

    def _is_full(self, number: int) -> bool:
        count, settings = len(self.answers[number].tokens), self.settings
        return count >= settings.max_new_tokens or len(self.prompts[number].ids) + count >= settings.max_length
