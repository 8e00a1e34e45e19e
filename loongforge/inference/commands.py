"""`loongforge eval` and `loongforge generate`: what every process of them does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loongforge.config.errors import UserError
from loongforge.config.schema import Config
from loongforge.data import builtin
from loongforge.data.eval_loader import EvalLoader
from loongforge.data.processing import SampleProcessor, Tiles
from loongforge.data.sample import SampleError
from loongforge.inference.generation import Prompt, greedy
from loongforge.inference.scoring import gather_scores, score_batches, summarize
from loongforge.inference.session import LoadedModel, loaded_model


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
    images: Sequence[str],
    prompt: str,
    max_new_tokens: int | None,
    as_json: bool,
) -> int:
    """Answers a prompt about images and prints the answer.

    Args:
        config: The recipe of the checkpoint, with the user's overrides.
        tree: The same as plain values.
        checkpoint: A run or a checkpoint.
        images: Image files, in the order of their placeholders; placeholders that the prompt lacks are put before it.
        prompt: What the user says.
        max_new_tokens: Longest answer; None: the recipe's.
        as_json: Print an object with prompt, answer and token ids.

    Returns:
        Exit code.
    """
    contents = [_read(path) for path in images]
    with loaded_model(config, checkpoint) as loaded:
        question = _prompt(loaded, prompt, contents, images)
        answers = greedy(
            loaded.runner,
            [question],
            eos_id=loaded.processor.eos_id,
            max_new_tokens=max_new_tokens or config.trainer.max_new_tokens,
            max_length=loaded.processor.max_length,
        )
        text = loaded.processor.decode(answers[0], skip_special_tokens=True).strip()
    if loaded.rank == 0:
        print(json.dumps({"prompt": prompt, "answer": text, "tokens": answers[0]}) if as_json else text)
    return 0


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"--image {path}: {error.strerror or error}") from error


def _prompt(loaded: LoadedModel, prompt: str, contents: list[bytes], names: Sequence[str]) -> Prompt:
    processor = loaded.processor
    lacking = max(0, len(contents) - prompt.count(processor.placeholder))
    content = f"{processor.placeholder}\n" * lacking + prompt
    try:
        read = [_image(processor, content, name) for content, name in zip(contents, names, strict=True)]
        images = [tiles for tiles, _ in read]
        ids = processor.render_prompt([{"role": "user", "content": content}], images)
    except SampleError as error:
        raise UserError(f"--prompt: {error}") from error
    shapes = [shape for tiles in images for shape in tiles] if processor.any_size else None
    return Prompt(ids, processor.normalise([tile for _, pixels in read for tile in pixels]), shapes)


def _image(processor: SampleProcessor, content: bytes, name: str) -> tuple[Tiles, list[np.ndarray]]:
    if processor.image_processor is None:
        return (), []  # `render_prompt` says that the model takes no images
    try:
        return processor.read_image(content)
    except SampleError as error:
        raise UserError(f"--image {name}: {error}") from error
