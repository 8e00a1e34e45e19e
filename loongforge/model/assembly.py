"""Builds this rank's parts of the model that a recipe names, with their first weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import torch
import torch.distributed as dist
from megatron.core.transformer.module import MegatronModule

from loongforge.components.context import BuildContext
from loongforge.components.hf import NameMap
from loongforge.components.llm.base import LLMConfig
from loongforge.components.lora import add_adapters, is_adapter, linear_layers, unmatched_target
from loongforge.components.projector.base import ProjectorConfig
from loongforge.components.sharding import draw_parameters, global_names, global_parameters, mark_tensor_parallel
from loongforge.components.trainable import is_adapted, trains, unmatched, unmatched_problem
from loongforge.components.vision.base import VisionConfig
from loongforge.config.errors import UserError
from loongforge.config.kernels import KernelsConfig
from loongforge.config.schema import ComponentConfig, Config
from loongforge.kernels.backend import Backend, current
from loongforge.kernels.registry import Selection, bind, choose
from loongforge.model.flops import differ_in_size
from loongforge.model.vlm import ImageSpec, VisionLanguageModel
from loongforge.parallel.groups import Groups

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def component_configs(config: Config) -> dict[str, ComponentConfig]:
    """The components that the recipe has, in the order of the data."""
    parts = {name: getattr(config.model, name) for name in ("vision", "projector", "llm")}
    return {name: part for name, part in parts.items() if part is not None}


def _dtype(config: Config, component: ComponentConfig) -> torch.dtype:
    return DTYPES[component.dtype or config.trainer.precision]


def _require_dtypes(config: Config, backend: Backend) -> None:
    """Refuses what the devices cannot compute in.

    Raises:
        UserError: naming the component.
    """
    for name, component in component_configs(config).items():
        dtype = component.dtype or config.trainer.precision
        if dtype != "fp32" and (support := backend.capability(dtype)).value == "no":
            key = f"model.{name}.dtype" if component.dtype else "trainer.precision"
            raise UserError(f"{key}={dtype!r}: backend {backend.name} has no {dtype} ({support.source}). Use fp32")


def _context(config: Config, name: str, groups: Groups) -> BuildContext | None:
    component = component_configs(config)[name]
    collection = groups.of(name)
    if collection is None:
        return None
    is_llm = name == "llm"
    return BuildContext(
        groups=collection,
        dtype=_dtype(config, component),
        pp=groups.layout.llm.pp if is_llm else 1,
        sequence_parallel=groups.layout.sequence_parallel and is_llm,
        recompute=config.trainer.recompute == "full",
    )


def _build_component(config: Config, name: str, groups: Groups) -> torch.nn.Module | None:
    """This rank's shard; frozen where the recipe says so. Its weights are drawn from the seed, but those that
    `init_from` will bring."""
    component = component_configs(config).get(name)
    context = _context(config, name, groups) if component is not None else None
    if component is None or context is None:
        return None
    if isinstance(component, ProjectorConfig):
        vision, llm = config.model.vision, config.model.llm
        assert isinstance(vision, VisionConfig) and isinstance(llm, LLMConfig)
        module = component.build(context, input_size=vision.output_size, output_size=llm.hidden_size)
    else:
        assert isinstance(component, VisionConfig | LLMConfig)
        module = component.build(context)
    _give_group(module, context.groups.tp)
    mark_tensor_parallel(module)
    if component.lora is not None:
        add_adapters(module, component.lora, _names(component), group=context.groups.tp)
    draw_parameters(
        module,
        component=name,
        seed=config.trainer.seed,
        std=component.init_std,
        group=context.groups.tp,
        only=is_adapter if component.init_from or config.model.init_from else lambda parameter: True,
    )
    for parameter, param in global_parameters(module):
        param.requires_grad_(is_adapter(parameter) or trains(parameter, component))
    return module


def _require_matches(config: Config, parts: dict[str, torch.nn.Module | None]) -> None:
    """Refuses patterns of `train` and targets of `lora` that match nothing on any rank: a rank holds some layers only,
    and not all are alike. Collective over the world where there are some.

    Raises:
        UserError: naming the first of them.
    """
    components = component_configs(config)
    patterns = [(name, pattern) for name, part in components.items() for pattern in part.train]
    held = {name: [] if part is None else list(global_names(part).values()) for name, part in parts.items()}
    missing = [(name, pattern) for name, pattern in patterns if unmatched([pattern], held[name])]
    for name, pattern, names in _missing_everywhere(patterns, missing, held):
        raise UserError(f"model.{name}.{unmatched_problem(pattern, names)}")
    adapted = {name: part for name, part in components.items() if part.lora is not None}
    targets = [(name, target) for name, part in adapted.items() for target in part.lora.targets]  # type: ignore[union-attr]
    layers = {name: _layers(parts[name], part) for name, part in adapted.items()}
    missing = [(name, own) for name, own in targets if not any(is_adapted(layer, [own]) for layer in layers[name])]
    for name, target, names in _missing_everywhere(targets, missing, layers):
        raise UserError(unmatched_target(name, target, names))


def _layers(module: torch.nn.Module | None, component: ComponentConfig) -> list[str]:
    return [] if module is None else linear_layers(module, _names(component))


def _missing_everywhere(
    wanted: list[tuple[str, str]], missing: list[tuple[str, str]], held: dict[str, list[str]]
) -> Iterator[tuple[str, str, list[str]]]:
    """(component, what it wants, names that ranks hold) of what every rank misses. Collective over the world where
    anything is wanted."""
    if not wanted:
        return
    everywhere: list[tuple[set[tuple[str, str]], dict[str, list[str]]]] = [(set(missing), held if missing else {})]
    if dist.get_world_size() > 1:
        own = everywhere[0]
        everywhere = [(set(), {})] * dist.get_world_size()
        dist.all_gather_object(everywhere, own)
    lost = set.intersection(*(found for found, _ in everywhere))
    for name, pattern in wanted:
        if (name, pattern) in lost:
            yield name, pattern, [one for _, all_held in everywhere for one in all_held.get(name, [])]


def _names(component: ComponentConfig) -> NameMap | None:
    """Hugging Face names; None: a plugin that does not say them."""
    try:
        return component.name_map()  # type: ignore[attr-defined]
    except UserError:
        return None


def _give_group(module: torch.nn.Module, group: dist.ProcessGroup) -> None:
    """Where a plugin's module has no group of its own, megatron-core would ask its global state, which has none."""
    for part in module.modules():
        if isinstance(part, MegatronModule) and not hasattr(part, "tp_group"):
            part.tp_group = group


def bind_kernels(wanted: KernelsConfig, backend: Backend) -> Selection:
    """Chooses what every op calls on a backend, for the rest of this process.

    Raises:
        UserError: a recipe's choice cannot be used here.
    """
    return bind(choose(backend, asdict(wanted)))


def build_model(config: Config, groups: Groups, *, image_token: int | None) -> VisionLanguageModel:
    """The model of this rank, on this process's device, with the kernels of the recipe.

    Args:
        config: The validated recipe.
        groups: From `parallel.make_groups`.
        image_token: Id of the image placeholder in the tokenizer; None for a text-only model.
    """
    _require_dtypes(config, current())
    bind_kernels(config.kernels, current())
    parts = {name: _build_component(config, name, groups) for name in ("vision", "projector", "llm")}
    _require_matches(config, parts)
    llm = config.model.llm
    routers = llm.routers if isinstance(llm, LLMConfig) else None
    images = image_spec(config, image_token)
    return VisionLanguageModel(**parts, images=images, routers=routers).to(current().device())


def image_spec(config: Config, image_token: int | None) -> ImageSpec | None:
    """What images become in this model; None for a text-only one."""
    vision, projector, llm = config.model.vision, config.model.projector, config.model.llm
    if image_token is None or not isinstance(vision, VisionConfig) or projector is None:
        return None
    assert isinstance(llm, LLMConfig)
    tokens = vision.num_image_tokens
    return ImageSpec(
        token=image_token,
        feature_shape=(vision.output_size,) if differ_in_size(config.model) else (tokens, vision.output_size),
        feature_dtype=_dtype(config, vision),
        row_size=llm.hidden_size,
        row_dtype=_dtype(config, llm),
        vision_trains=vision.trains,
        projector_trains=projector.trains,
    )
