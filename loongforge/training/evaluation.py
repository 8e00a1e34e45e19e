"""Evaluation during training: held-out loss, exact match, and some answers to read."""

from __future__ import annotations

from dataclasses import dataclass, field

from loongforge.config.schema import Config
from loongforge.data.eval_loader import EvalLoader, Example
from loongforge.data.processing import SampleProcessor
from loongforge.inference.generation import Prompt, greedy
from loongforge.inference.scoring import Summary, score_batches, summarize
from loongforge.model.execution import Runner


@dataclass(frozen=True)
class Answer:
    """A generated answer beside the right one."""

    question: str
    answer: str
    reference: str


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    summary: Summary
    answers: list[Answer] = field(default_factory=list)
    """On the ranks that work on the first data-parallel replica."""


class Evaluator:
    """Evaluates the model on held-out data.

    Args:
        config: The recipe; `data.eval` is given.
        runner: Of the model.
        processor: Makes tokens and pixels.
    """

    def __init__(self, config: Config, runner: Runner, processor: SampleProcessor) -> None:
        self.trainer, self.runner, self.processor = config.trainer, runner, processor
        self.data = config.data
        self.full = self._loader(config.trainer.eval_samples)
        works_on_first = min(runner.groups.replicas) < runner.groups.layout.replicas_together
        self.examples = self.full.examples(config.trainer.generate_samples) if works_on_first else []

    def _loader(self, limit: int | None) -> EvalLoader:
        layout = self.runner.groups.layout
        return EvalLoader(
            self.data,
            self.processor,
            micro_batch_size=min(self.trainer.eval_micro_batch_size, limit or self.trainer.eval_micro_batch_size),
            replicas=self.runner.groups.replicas,
            dp_size=layout.dp,
            pad_multiple=layout.sequence_multiple,
            limit=limit,
        )

    def sanity_check(self) -> Summary | None:
        """A tiny evaluation, answers included, so that a broken one fails before step 1."""
        if not self.trainer.sanity_samples:
            return None
        self.generate(self.examples[:1], max_new_tokens=2)
        loader = self._loader(self.trainer.sanity_samples)
        return summarize(self.runner, score_batches(self.runner, loader))

    def evaluate(self) -> Evaluation:
        """All held-out samples that the recipe asks for. Collective over the world."""
        summary = summarize(self.runner, score_batches(self.runner, self.full))
        return Evaluation(summary, self.generate(self.examples, self.trainer.max_new_tokens))

    def generate(self, examples: list[Example], max_new_tokens: int) -> list[Answer]:
        """Answers to some held-out questions, made by the first LLM replica. Collective over the world.

        Args:
            examples: The same on all ranks that work on that replica.
            max_new_tokens: Longest answer.
        """
        prompts = [Prompt(example.prompt, example.images) for example in examples]
        new = greedy(
            self.runner,
            prompts,
            eos_id=self.processor.eos_id,
            max_new_tokens=max_new_tokens,
            max_length=self.processor.max_length,
        )
        if not examples:
            return []
        texts = [self.processor.decode(ids, skip_special_tokens=True).strip() for ids in new]
        return [Answer(e.question, text, e.reference) for e, text in zip(examples, texts, strict=True)]
