"""How much a step works on, and what each component costs; every later figure follows from these."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from loongforge.components.llm.base import LLMConfig, ParameterSize
from loongforge.components.llm.stages import stage_layers
from loongforge.components.projector.base import ProjectorConfig
from loongforge.components.trainable import trains
from loongforge.components.vision.base import VisionConfig
from loongforge.config.errors import UserError
from loongforge.config.schema import ComponentConfig, Config
from loongforge.model.checks import longest_sample
from loongforge.model.flops import forward_flops, image_tokens, num_params, training_factors
from loongforge.parallel.layout import Layout

DTYPE_BYTES = {"fp32": 4, "bf16": 2}
LABEL_SHARE = 0.5
"""Part of the text tokens that is taken to carry a label; decides the size of the logits."""


@dataclass(frozen=True)
class Workload:
    """What a mean sample looks like."""

    tokens: int
    """LLM tokens of a sample, image tokens included."""
    images: float
    """Images of a sample."""

    @classmethod
    def from_recipe(cls, config: Config, *, tokens: int | None = None, images: float | None = None) -> Workload:
        """Samples of the recipe's greatest length with one image each, where nothing else is said.

        Raises:
            UserError: the images alone are longer than the sample.
        """
        images = (1.0 if config.model.vision is not None else 0.0) if images is None else images
        tokens = longest_sample(config) if tokens is None else tokens
        found, longest = cls(tokens, images), longest_sample(config)
        if tokens > longest:
            raise UserError(
                f"--tokens-per-sample {tokens} is more than the recipe's longest sample of {longest} tokens "
                "(data.max_length, or the LLM's max_seq_len)"
            )
        if images and config.model.vision is None:
            raise UserError(f"--images-per-sample {images:g}: the model has no vision encoder (model.vision)")
        if images * image_tokens(config.model) > tokens:
            raise UserError(
                f"--images-per-sample {images:g} take {images * image_tokens(config.model):.0f} tokens, more than "
                f"--tokens-per-sample {tokens}"
            )
        return found


@dataclass(frozen=True)
class Costs:
    """A recipe's components as numbers."""

    config: Config
    workload: Workload

    def with_config(self, config: Config) -> Costs:
        """The same with another layout or trainer; the components' sizes, and all that follows from them, stay."""
        found = replace(self, config=config)
        for name in (
            "factors",
            "llm_flops_per_token",
            "flops_per_image",
            "encoder_layers",
            "forward_flops",
            "image_tokens",
        ):
            if name in self.__dict__:
                found.__dict__[name] = self.__dict__[name]
        return found

    @property
    def llm(self) -> LLMConfig:
        """The language model."""
        llm = self.config.model.llm
        assert isinstance(llm, LLMConfig)
        return llm

    @property
    def vision(self) -> VisionConfig | None:
        """The vision encoder."""
        vision = self.config.model.vision
        return vision if isinstance(vision, VisionConfig) else None

    @property
    def projector(self) -> ProjectorConfig | None:
        """The projector."""
        projector = self.config.model.projector
        return projector if isinstance(projector, ProjectorConfig) else None

    def part(self, name: str) -> ComponentConfig:
        """A component that the recipe has."""
        part: ComponentConfig = getattr(self.config.model, name)
        return part

    def trained_on(self, name: str, layout: Layout, stage: int) -> int:
        """Parameters of a component that train on a rank of a pipeline stage; where adapters or patterns are not
        the LLM's, or its family does not say their sizes, all of them are counted."""
        if not self.part(name).trains:
            return 0
        if name != "llm" or self._exceptions is None:
            return self.params_on(name, layout, stage)
        return sum(self._exceptions_on(layout, stage))

    def _exceptions_on(self, layout: Layout, stage: int) -> tuple[int, int]:
        """Parameters of the LLM that train on a rank of a stage where not all or none do: of experts, and others."""
        here, tp = stage_layers(self.llm.num_layers, layout.llm.pp, stage), layout.llm.tp
        found = {True: 0, False: 0}
        for size in self._exceptions or ():
            if any(layer in here for layer in size.layers):
                found[size.of_expert] += size.numbers // (tp if size.divided else 1)
        return found[True] // layout.llm.ep, found[False]

    @cached_property
    def _exceptions(self) -> list[ParameterSize] | None:
        """Parameters of the LLM that train where not all or none do; None: nothing is known of them."""
        llm = self.llm
        own = llm.parameter_sizes() if llm.train else {}
        adapters = llm.adapter_sizes()
        if (llm.train and not own) or (llm.lora is not None and not adapters):
            return None
        found = [size for name, size in own.items() if trains(name, llm)] + list(adapters.values())
        return found or None

    def trained(self, name: str) -> int:
        """Parameters of a component that train, over all shards; see `trained_on`."""
        if not self.part(name).trains:
            return 0
        if name != "llm" or self._exceptions is None:
            return num_params(self.config.model)[name]
        return sum(size.numbers for size in self._exceptions)

    def dtype(self, name: str) -> str:
        """Of a component's parameters and activations."""
        return self.part(name).dtype or self.config.trainer.precision

    def size(self, name: str) -> int:
        """Bytes of a number of a component."""
        return DTYPE_BYTES[self.dtype(name)]

    @cached_property
    def image_tokens(self) -> int:
        """LLM tokens of an image."""
        return image_tokens(self.config.model)

    @cached_property
    def llm_flops_per_token(self) -> float:
        """Forward FLOPs of the LLM for one token of a mean sample."""
        load = self.workload
        return self.llm.flops_with_images(load.tokens, load.images * self.image_tokens / load.tokens)

    @cached_property
    def factors(self) -> dict[str, int]:
        """Forward passes that a training step costs each component (3 trained, 2 frozen behind a trained one, 1)."""
        return training_factors(self.config.model)

    @cached_property
    def flops_per_image(self) -> dict[str, float]:
        """Forward FLOPs of the encoder components."""
        assert self.vision is not None and self.projector is not None
        projector = self.projector.flops(self.vision.num_image_tokens, **self.ends)
        return {"vision": self.vision.flops(), "projector": projector}

    @cached_property
    def encoder_layers(self) -> dict[str, int]:
        """Layers of the encoder components."""
        assert self.vision is not None and self.projector is not None
        return {"vision": self.vision.built_layers, "projector": self.projector.built_layers}

    @cached_property
    def forward_flops(self) -> dict[str, float]:
        """Of each component in a step."""
        samples, load = self.config.trainer.global_batch_size, self.workload
        tokens, images = samples * load.tokens, samples * load.images
        return forward_flops(self.config.model, tokens=tokens, images=images, seq_len=load.tokens)

    @property
    def step_flops(self) -> dict[str, float]:
        """Of each component in a step, backward passes included."""
        return {name: flops * self.factors[name] for name, flops in self.forward_flops.items()}

    @property
    def ends(self) -> dict[str, int]:
        """Widths on both sides of the projector."""
        assert self.vision is not None
        return {"input_size": self.vision.output_size, "output_size": self.llm.hidden_size}

    def replicated(self, name: str, layout: Layout, stage: int = 0) -> list[tuple[int, int]]:
        """Parameters of a component that train on one of its ranks, and how many ranks hold the same: those that divide
        the tokens, but for experts only so many as have no others."""
        grid = layout.grid(name)
        assert grid is not None
        whole, ranks = self.trained_on(name, layout, stage), grid.dp * grid.cp
        experts = 0
        if name == "llm" and whole:
            some = self._exceptions is not None
            all_of_them = self.llm.expert_params_on(grid.tp, grid.pp, stage, grid.ep)
            experts = self._exceptions_on(layout, stage)[0] if some else all_of_them
        return [(whole - experts, ranks), *([(experts, ranks // grid.ep)] if experts else [])]

    def params_on(self, name: str, layout: Layout, stage: int = 0) -> int:
        """Parameters of a component that one of its ranks holds."""
        grid = layout.grid(name)
        assert grid is not None
        if name == "llm":
            return self.llm.params_on(grid.tp, grid.pp, stage, grid.ep)
        if name == "vision":
            assert self.vision is not None
            return self.vision.params_on(grid.tp)
        assert self.projector is not None
        return self.projector.params_on(grid.tp, **self.ends)
