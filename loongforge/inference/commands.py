"""`loongforge eval` and `loongforge generate`: what every process of them does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from loongforge.config.errors import UserError
from loongforge.config.schema import Config
from loongforge.data import builtin
from loongforge.data.eval_loader import EvalLoader
from loongforge.inference.answers import AnswerText
from loongforge.inference.generation import Completion, Prompt, Settings
from loongforge.inference.generation import generate as generate_answers
from loongforge.inference.questions import Question, asked, make_prompt, read_questions
from loongforge.inference.sampling import Sampling
from loongforge.inference.scoring import gather_scores, score_batches, summarize
from loongforge.inference.session import LoadedModel, loaded_model

Item = TypeVar("Item")


def evaluate(config: Config, tree: dict[str, Any], *, checkpoint: str, data: str | None, as_json: bool) -> int:
    """Evaluates a checkpoint on held-out data and prints the result.

    Args:
        config: The recipe of the checkpoint, with the user's overrides.
        tree: The same as plain values.
        checkpoint: A run or a checkpoint.
        data: Data in place of the recipe's `data.eval`.
        as_json: A line for each sample instead of a summary: id, loss, label_tokens, logprobs.

    Returns:
        Exit code.
    """
    source = config.data if data is None else replace(config.data, eval=data, builtin=None)
    if source.eval is None:
        raise UserError("the recipe has no data.eval; name data with --data FILE")
    if source.builtin is not None:
        builtin.build(source.builtin, source.dir)
    with loaded_model(config, checkpoint) as loaded:
        groups = loaded.runner.groups
        loader = EvalLoader(
            source,
            loaded.processor,
            micro_batch_size=config.trainer.eval_micro_batch_size,
            replicas=groups.replicas,
            dp_size=groups.layout.dp,
            pad_multiple=groups.layout.sequence_multiple,
        )
        scores = score_batches(loaded.runner, loader)
        summary, everyone = summarize(loaded.runner, scores), gather_scores(loaded.runner, scores)
    if loaded.rank == 0 and as_json:
        for score in everyone:
            print(
                json.dumps(
                    {
                        "id": score.id,
                        "loss": score.loss,
                        "label_tokens": len(score.logprobs),
                        "exact_match": score.exact,
                        "logprobs": score.logprobs,
                    }
                )
            )
    elif loaded.rank == 0:
        print(f"checkpoint   {loaded.checkpoint.path}")
        print(f"samples      {summary.samples}\nlabel tokens {summary.label_tokens}")
        print(f"loss         {summary.loss:.6f}\nexact match  {summary.exact_match:.4f}")
    return 0


def generate(
    config: Config,
    tree: dict[str, Any],
    *,
    checkpoint: str,
    prompt: str | None,
    images: Sequence[str],
    data: str | None,
    batch_size: int,
    max_new_tokens: int,
    sampling: dict[str, Any],
    stop: Sequence[str],
    as_json: bool,
) -> int:
    """Answers prompts about images and prints the answers.

    Args:
        config: The recipe of the checkpoint, with the user's overrides.
        tree: The same as plain values.
        checkpoint: A run or a checkpoint.
        prompt: What the user says; None: `data` has the prompts.
        images: Image files, in the order of their placeholders; placeholders that the prompt lacks are put before it.
        data: A JSONL file of prompts.
        batch_size: Prompts of it that each LLM replica answers together.
        max_new_tokens: Longest answer.
        sampling: Fields of `Sampling`.
        stop: Strings that end an answer.
        as_json: Print an object with prompt, answer and token ids for each.

    Returns:
        Exit code.
    """
    with loaded_model(config, checkpoint) as loaded:
        processor = loaded.processor
        questions = _questions(prompt, images, data, processor.max_sample_bytes)
        settings = Settings(processor.eos_id, max_new_tokens, processor.max_length, Sampling(**sampling))
        streams = prompt is not None and not as_json and sys.stdout.isatty() and _writes(loaded)
        for part in _batches(questions, batch_size * loaded.runner.groups.layout.dp):
            prompts = [make_prompt(processor, question) for question in part]
            texts = [AnswerText(partial(processor.decode, skip_special_tokens=True), stop) for _ in part]
            completions = answer(loaded, prompts, settings, texts, streams=streams)
            if loaded.rank == 0:
                for question, text, completion in zip(part, texts, completions, strict=True):
                    print(_spelled(question, text, completion, as_json=as_json, streams=streams), flush=True)
    return 0


def answer(
    loaded: LoadedModel, prompts: Sequence[Prompt], settings: Settings, texts: Sequence[AnswerText], *, streams: bool
) -> list[Completion]:
    """Answers prompts that every rank knows; a lone one's text appears token by token where `streams`."""
    if len(prompts) == 1:
        text, ends = texts[0], settings.ends
        if streams:
            settings = replace(settings, on_token=lambda _, ids: print(text.news(ids), end="", flush=True))
        settings = replace(settings, ends=lambda ids: text.stops(ids) or (ends is not None and ends(ids)))
        return generate_answers(loaded.runner, prompts, settings)
    settings = replace(settings, ends=texts[0].stops)  # stop strings are the same for all
    return generate_answers(loaded.runner, prompts, settings, shared=True)


def _writes(loaded: LoadedModel) -> bool:
    """Whether this process has the terminal, and sees the tokens of the first replica as they are made."""
    place = loaded.runner.groups.place
    return loaded.rank == 0 and place is not None and place.dp == 0


def _spelled(question: Question, text: AnswerText, completion: Completion, *, as_json: bool, streams: bool) -> str:
    if streams:
        return text.rest(completion.tokens)
    whole = text.whole(completion.tokens)
    if not as_json:
        return f"{question.id}: {whole}" if question.id else whole
    fields = {"prompt": question.text, "answer": whole, "tokens": completion.tokens, "finish": completion.finish}
    return json.dumps({"id": question.id, **fields} if question.id else fields)


def _questions(prompt: str | None, images: Sequence[str], data: str | None, max_bytes: int) -> Iterator[Question]:
    """The one of the command line, or those of a file."""
    if prompt is not None or data is None:
        yield asked(prompt or "", images)
        return
    found = read_questions(data, max_bytes)
    first = next(found, None)
    if first is None:
        raise UserError(f"--data {data}: it has no prompts")
    yield first
    yield from found


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    left = iter(items)
    while part := list(islice(left, size)):
        yield part
