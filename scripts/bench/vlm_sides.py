"""What gpu_vlm.py compares: our packed step, and plain loops over transformers' LLaVA. Import it after `activate`."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from ours import Ours
from rows import IMAGE_TOKEN, Sample, packed_batch, packed_inputs, padded_inputs
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.utils import is_flash_attn_2_available

from loongforge.checkpoint.families.base import ExportFacts
from loongforge.checkpoint.families.registry import family_for
from loongforge.components.vision.base import VisionConfig
from loongforge.config.schema import Config
from loongforge.kernels.backend import Backend
from loongforge.model.assembly import DTYPES, component_configs

Passes = Sequence[Sequence[Sample]]
"""The samples of a step, by forward pass."""
_PARTS = {
    "vision": ("model.vision_tower.",),
    "projector": ("model.multi_modal_projector.",),
    "llm": ("model.language_model.", "lm_head."),
}


def plain_model(config: Config, backend: Backend) -> Any:
    """transformers' LLaVA of the recipe's sizes and precision, with random weights; frozen where the recipe says so."""
    sizes = {**family_for(config.model).to_hf(config.model, _facts(config)), "image_token_index": IMAGE_TOKEN}
    with torch.device(backend.device()):
        model = LlavaForConditionalGeneration._from_config(LlavaConfig(**sizes), dtype=DTYPES[config.trainer.precision])
    frozen = [name for name, part in component_configs(config).items() if part.freeze]
    for name, param in model.named_parameters():
        param.requires_grad_(not any(name.startswith(_PARTS[part]) for part in frozen))
    if config.trainer.recompute == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def save_model(model: Any, config: Config, folder: Path) -> None:
    """As `init_from` reads it."""
    model.save_pretrained(folder)
    for name, content in family_for(config.model).files(config.model, _facts(config)).items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def _facts(config: Config) -> ExportFacts:
    assert isinstance(config.model.vision, VisionConfig)
    return ExportFacts(tokenizer=None, image_token="", num_image_tokens=config.model.vision.num_image_tokens)


def attention_kinds() -> list[str]:
    """What transformers computes attention with here, in its words."""
    return ["sdpa", *(["flash_attention_2"] if is_flash_attn_2_available() else [])]


class Parking:
    """Moves tensors to the host and back, so that sides that take turns have the device to themselves."""

    def __init__(self) -> None:
        self.parked: list[tuple[torch.UntypedStorage, torch.UntypedStorage]] = []

    def park(self, tensors: Iterable[torch.Tensor]) -> None:
        """Leaves tensors without memory until `wake`; views stay views."""
        storages = {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}
        for storage in storages.values():
            kept = torch.UntypedStorage(storage.nbytes())
            kept.copy_(storage)
            self.parked.append((storage, kept))
            storage.resize_(0)

    def wake(self) -> None:
        """Brings them back."""
        for storage, kept in self.parked:
            storage.resize_(kept.nbytes())
            storage.copy_(kept)
        self.parked.clear()


class OurSide:
    """Rows of whole samples; starts from the other side's weights."""

    def __init__(self, config: Config, groups: Any, steps: Sequence[Passes], weights: Path) -> None:
        config.model.init_from = str(weights)
        self.ours = Ours(config, groups)
        self.steps = [[packed_batch(samples) for samples in rows] for rows in steps]
        self.passes, self.parking = len(self.steps[0]), Parking()

    def _tensors(self) -> Iterator[torch.Tensor]:
        """Weights, gradients, what the optimizer keeps."""
        for param in self.ours.model.parameters():
            yield param
            if param.requires_grad:
                yield param.main_grad  # type: ignore[attr-defined]
        for part in self.ours.optimizers.parts.values():
            inner = part.optimizer.optimizer
            yield from (param for group in inner.param_groups for param in group["params"])
            yield from (x for state in inner.state.values() for x in state.values() if isinstance(x, torch.Tensor))

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """On the device inside of it, on the host outside."""
        self.parking.wake()
        yield
        self.parking.park(self._tensors())

    def loss(self) -> float:
        """Of the first step, before any update."""
        return float(self.ours.gradients(self.steps[0]))

    def step(self, number: int) -> None:
        """Forward, backward, clip, update."""
        self.ours.step(*self.steps[number])


class PlainSide:
    """A loop over transformers' model, with the loss that it computes itself.

    Args:
        model: From `plain_model`; several sides may share it.
        optimizer: Of its parameters, shared likewise.
        attention: One of `attention_kinds`.
        steps: Samples by forward pass. A pass that does not fit into memory is halved, for the whole run.
        packed: A pass is one row of documents; otherwise rows padded to the longest.
        device: Where the model is.
    """

    def __init__(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        *,
        attention: str,
        steps: Sequence[Passes],
        packed: bool,
        device: torch.device,
    ) -> None:
        self.model, self.optimizer, self.attention = model, optimizer, attention
        self.samples, self.packed, self.device = steps, packed, device
        self._cut(1)

    def _cut(self, pieces: int) -> None:
        """Makes the inputs of all steps, each pass in so many."""
        self.pieces = pieces
        self.steps = [
            [self._inputs(part) for samples in passes for part in _halved(samples, pieces)] for passes in self.samples
        ]
        self.labels = [sum(sample.label_tokens for part in passes for sample in part) for passes in self.samples]

    @property
    def passes(self) -> int:
        """Of a step."""
        return len(self.steps[0])

    def _inputs(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        if self.packed:
            return packed_inputs([samples], sum(len(sample) for sample in samples))
        return padded_inputs(samples)

    def _gradients(self, number: int) -> torch.Tensor:
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for inputs in self.steps[number]:
            moved = {name: x.to(self.device) for name, x in inputs.items()}
            moved["pixel_values"] = moved["pixel_values"].to(self.model.dtype)
            loss = self.model(**moved, num_items_in_batch=self.labels[number], use_cache=False).loss
            loss.backward()
            total += loss.detach()
        return total

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """It stays on the device: its share is small next to its activations."""
        return contextlib.nullcontext()

    def loss(self) -> float:
        """Of the first step, before any update."""
        self.model.set_attn_implementation(self.attention)
        return float(self._fitting(0))

    def step(self, number: int) -> None:
        """Forward, backward, clip, update."""
        self.model.set_attn_implementation(self.attention)
        self._fitting(number)
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()

    def _fitting(self, number: int) -> torch.Tensor:
        """Gradients of a step, in passes that fit into memory."""
        while (found := self._tried(number)) is None:
            self.optimizer.zero_grad()
            gc.collect()
            self._cut(2 * self.pieces)
        return found

    def _tried(self, number: int) -> torch.Tensor | None:
        """None: out of memory, and there is something left to halve."""
        try:
            return self._gradients(number)
        except torch.OutOfMemoryError:
            if self.pieces >= max(len(samples) for passes in self.samples for samples in passes):
                raise
            return None


def _halved(samples: Sequence[Sample], pieces: int) -> list[Sequence[Sample]]:
    """Up to so many parts, none empty."""
    size = -(-len(samples) // pieces)
    return [samples[first : first + size] for first in range(0, len(samples), size)]
