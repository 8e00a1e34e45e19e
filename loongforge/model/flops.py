"""FLOPs of a composed model, counted per component with frozen parts counted right. No torch here.

A matrix product costs twice its multiply-adds. Training costs forward (1), gradient of the weights (1, where they
train) and gradient of the input (1, where something before it trains).
"""

from __future__ import annotations

from loongforge.components.llm.base import LLMConfig
from loongforge.components.projector.base import ProjectorConfig
from loongforge.components.vision.base import VisionConfig
from loongforge.config.schema import ModelConfig


def image_tokens(model: ModelConfig) -> int:
    """LLM tokens of one image; 0 for a text-only model."""
    vision, projector = model.vision, model.projector
    if not isinstance(vision, VisionConfig) or not isinstance(projector, ProjectorConfig):
        return 0
    return projector.num_tokens(vision.num_image_tokens)


def differ_in_size(model: ModelConfig) -> bool:
    """Whether each image has a number of features of its own."""
    return getattr(model.vision, "any_size", False) or getattr(model.projector, "cuts_images", False)


def num_params(model: ModelConfig) -> dict[str, int]:
    """Parameters of each component, over all shards."""
    vision, projector, llm = model.vision, model.projector, model.llm
    assert isinstance(llm, LLMConfig)
    found = {}
    if isinstance(vision, VisionConfig):
        found["vision"] = vision.num_params()
        assert isinstance(projector, ProjectorConfig)
        found["projector"] = projector.num_params(input_size=vision.output_size, output_size=llm.hidden_size)
    return found | {"llm": llm.num_params()}


def forward_flops(model: ModelConfig, *, tokens: float, images: float, seq_len: int) -> dict[str, float]:
    """Forward FLOPs of each component.

    Args:
        model: The model.
        tokens: LLM tokens, image tokens included.
        images: Images.
        seq_len: Length of a sequence in tokens, for the quadratic part.
    """
    vision, projector, llm = model.vision, model.projector, model.llm
    assert isinstance(llm, LLMConfig)
    found = {}
    if isinstance(vision, VisionConfig) and isinstance(projector, ProjectorConfig):
        sizes = dict(input_size=vision.output_size, output_size=llm.hidden_size)
        found["vision"] = images * vision.flops() * projector.typical_tiles
        found["projector"] = images * projector.flops(vision.num_image_tokens, **sizes)
    share = images * image_tokens(model) / tokens if tokens else 0.0
    return found | {"llm": tokens * llm.flops_with_images(seq_len, min(1.0, share))}


def training_factors(model: ModelConfig) -> dict[str, int]:
    """What a training step costs each component, in forward passes: 3 trained, 2 frozen but for a few parameters or
    behind something trained, 1 frozen."""
    factors, something_trains = {}, False
    for name in ("vision", "projector", "llm"):
        component = getattr(model, name)
        if component is not None:
            something_trains = something_trains or component.trains
            factors[name] = 1 + component.trains_whole + something_trains
    return factors
