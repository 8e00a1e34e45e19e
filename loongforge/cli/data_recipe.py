"""The data of a recipe, as `data check` and `data preview` need it. No torch, no model."""

from __future__ import annotations

from loongforge.components.llm.base import LLMConfig
from loongforge.components.vision.base import VisionConfig
from loongforge.config.schema import Config
from loongforge.data.processing import SampleProcessor
from loongforge.parallel.layout import Layout


def recipe_processor(config: Config) -> SampleProcessor:
    """The processor of a run; an embedded data set is built where it is missing.

    Raises:
        UserError: tokenizer or data set that cannot be had.
    """
    from loongforge.data import builtin
    from loongforge.data.processing import build_processor
    from loongforge.model.flops import image_tokens

    vision, llm = config.model.vision, config.model.llm
    assert isinstance(llm, LLMConfig) and (vision is None or isinstance(vision, VisionConfig))
    if config.data.builtin is not None:
        builtin.build(config.data.builtin, config.data.dir)
    return build_processor(config.data, vision, llm, num_image_tokens=image_tokens(config.model))


def recipe_layout(config: Config) -> Layout | None:
    """The layout of the run that `launcher.nproc` says (one process where it says nothing), if the recipe fits it.

    Data is often looked at on a machine that the recipe would not train on, so a misfit is no error here.
    """
    from loongforge.cli.processes import check_fit
    from loongforge.config.errors import UserError

    try:
        return check_fit(config, config.launcher.nproc or 1)
    except UserError:
        return None
