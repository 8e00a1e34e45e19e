"""The data of a recipe, as verbs need it that look at data. No torch, no model."""

from __future__ import annotations

from loongforge.components.llm.base import LLMConfig
from loongforge.components.projector.base import ProjectorConfig
from loongforge.components.vision.base import VisionConfig
from loongforge.config.errors import UserError
from loongforge.config.schema import Config
from loongforge.data.arrange import Load
from loongforge.data.check.outlook import BatchShape
from loongforge.data.processing import SampleProcessor
from loongforge.parallel.layout import Layout


def recipe_processor(config: Config) -> SampleProcessor:
    """The processor of a run; an embedded data set is built where it is missing.

    Raises:
        UserError: tokenizer or data set that cannot be had.
    """
    from loongforge.data import builtin
    from loongforge.data.build import build_processor

    vision, projector, llm = config.model.vision, config.model.projector, config.model.llm
    assert isinstance(llm, LLMConfig) and (vision is None or isinstance(vision, VisionConfig))
    assert projector is None or isinstance(projector, ProjectorConfig)
    if config.data.builtin is not None:
        builtin.build(config.data.builtin, config.data.dir)
    return build_processor(config.data, vision, llm, projector=projector)


def recipe_layout(config: Config) -> Layout | None:
    """The layout of the run that `launcher.nproc` says (one process where it says nothing), if the recipe fits it.

    Data is often looked at on a machine that the recipe would not train on, so a misfit is no error here.
    """
    from loongforge.cli.processes import check_fit

    try:
        return check_fit(config, config.launcher.nproc or 1)
    except UserError:
        return None


def batch_shape(config: Config, layout: Layout) -> BatchShape:
    """Of the recipe's padded batches."""
    from loongforge.model.checks import micro_batch_size

    return BatchShape(
        global_batch_size=config.trainer.global_batch_size,
        micro_batch_size=micro_batch_size(config, layout),
        dp=layout.dp,
        multiple=layout.sequence_multiple,
        steps=config.trainer.steps,
        seed=config.trainer.seed,
        shuffle=config.data.shuffle,
    )


def first_loads(config: Config, *, steps: int) -> list[list[tuple[str, Load]]]:
    """Ids and sizes of the samples of the first steps, without their pixels; bad ones are left out.

    Raises:
        UserError: there is no good one.
    """
    from loongforge.data.metadata import MetadataTable
    from loongforge.data.order import SampleOrder
    from loongforge.data.sources import open_sources

    processor, data = recipe_processor(config), config.data
    opened = open_sources(data.train, "data.train", data.image_dir, data.index_dir)
    sources, weights = [source for source, _ in opened], [weight for _, weight in opened]
    order = SampleOrder([len(source) for source in sources], weights, seed=config.trainer.seed, shuffle=data.shuffle)
    table, size = MetadataTable(sources, processor, index_dir=data.index_dir), config.trainer.global_batch_size
    found = []
    for step in range(steps):
        places = [order.at(position) for position in range(step * size, (step + 1) * size)]
        good = [(place, meta) for place in places if (meta := table.get(*place)).problem is None]
        found.append(
            [
                (sources[source].load(index).id, Load(meta.text_tokens, tuple(processor.images(meta.image_sizes))))
                for (source, index), meta in good
            ]
        )
    if not any(found):
        raise UserError("data.train: no good sample in the first steps; see `loongforge data check`")
    return [step for step in found if step]
