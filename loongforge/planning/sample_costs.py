"""What a sample costs, for balancing: from the FLOPs of a recipe's components."""

from __future__ import annotations

from loongforge.components.projector.base import ProjectorConfig
from loongforge.components.vision.base import VisionConfig
from loongforge.config.schema import Config
from loongforge.data.balance import CostModel
from loongforge.model.flops import training_factors

_PER_MS = 1e9
"""FLOPs of a millisecond on a device of 1 TFLOP/s: only ratios matter here."""


def cost_model(config: Config) -> CostModel:
    """Costs of a training step, frozen parts counted as what they are. Where images are of one size, theirs are linear
    in their patches; the projector's are counted with them."""
    model, factors = config.model, training_factors(config.model)
    vision, projector, llm = model.vision, model.projector, model.llm
    linear, quadratic = llm.flops(0), llm.flops(1) - llm.flops(0)  # type: ignore[attr-defined]
    per_patch, per_pair = 0.0, 0.0
    if isinstance(vision, VisionConfig) and isinstance(projector, ProjectorConfig):
        sizes = {"input_size": vision.output_size, "output_size": llm.hidden_size}  # type: ignore[attr-defined]
        own, pairs = vision.patch_flops()
        encode, per_pair = factors["vision"] * own * vision.num_patches, factors["vision"] * pairs
        project = factors["projector"] * projector.flops(vision.num_image_tokens, **sizes)
        per_patch = (encode + project) / vision.num_patches
    return CostModel(
        vision_linear=per_patch / _PER_MS,
        vision_quadratic=per_pair / _PER_MS,
        vision_per_unit=0.0,
        vision_extra_patches=0,
        llm_linear=factors["llm"] * linear / _PER_MS,
        llm_quadratic=factors["llm"] * quadratic / _PER_MS,
        llm_per_sample=0.0,
    )
