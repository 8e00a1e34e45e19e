"""The data of a recipe, as verbs need it that look at data. No torch, no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loongforge.components.llm.base import LLMConfig
from loongforge.components.projector.base import ProjectorConfig
from loongforge.components.vision.base import VisionConfig
from loongforge.config.errors import UserError
from loongforge.config.schema import Config
from loongforge.data.arrange import Load
from loongforge.data.check.outlook import BatchShape
from loongforge.data.processing import SampleProcessor
from loongforge.parallel.layout import Layout

if TYPE_CHECKING:
    from loongforge.data.metadata import MetadataTable
    from loongforge.data.sample import SampleMeta
    from loongforge.data.sources import Source


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


def batch_shape(config: Config, layout: Layout) -> BatchShape | None:
    """Of the recipe's padded batches; None where its samples can only be packed."""
    from loongforge.model.checks import micro_batch_size

    if config.trainer.global_batch_size % (micro_batch_size(config, layout) * layout.dp):
        return None
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
    sources, table, processor, places = _first_places(config, steps)
    found = [
        [
            (sources[source].load(index).id, _load(processor, meta))
            for source, index in step
            if (meta := table.get(source, index)).problem is None
        ]
        for step in places
    ]
    if not any(found):
        raise UserError("data.train: no good sample in the first steps; see `loongforge data check`")
    return [step for step in found if step]


def indexed_loads(config: Config, *, steps: int) -> list[list[Load]] | None:
    """Sizes of the good samples of the first steps by `loongforge data index`, without reading a sample. None where not
    all of `data.train` is indexed, or with another tokenizer or recipe."""
    if not _has_index(config):
        return None
    _, table, processor, places = _first_places(config, steps)
    metas = [[table.known(*place) for place in step] for step in places]
    if any(meta is None for step in metas for meta in step):
        return None
    found = [[_load(processor, meta) for meta in step if meta and meta.problem is None] for step in metas]
    return [step for step in found if step] or None


def _has_index(config: Config) -> bool:
    from loongforge.data.meta_index import meta_path
    from loongforge.data.sources.open import list_files

    train = config.data.train
    try:
        patterns = [train] if isinstance(train, str) else [source.path for source in train]
        paths = [meta_path(file, config.data.index_dir) for each in patterns for file in list_files(each, "data.train")]
    except UserError:
        return False
    return all(path is not None and path.exists() for path in paths)


def _first_places(
    config: Config, steps: int
) -> tuple[list[Source], MetadataTable, SampleProcessor, list[list[tuple[int, int]]]]:
    """The sources of a run, their metadata, its processor, and (source, index) of every sample of the first steps."""
    from loongforge.data.metadata import MetadataTable
    from loongforge.data.order import SampleOrder
    from loongforge.data.sources import open_sources

    processor, data = recipe_processor(config), config.data
    opened = open_sources(data.train, "data.train", data.image_dir, data.index_dir)
    sources, weights = [source for source, _ in opened], [weight for _, weight in opened]
    order = SampleOrder([len(source) for source in sources], weights, seed=config.trainer.seed, shuffle=data.shuffle)
    table, size = MetadataTable(sources, processor, index_dir=data.index_dir), config.trainer.global_batch_size
    places = [[order.at(position) for position in range(step * size, (step + 1) * size)] for step in range(steps)]
    return sources, table, processor, places


def _load(processor: SampleProcessor, meta: SampleMeta) -> Load:
    return Load(meta.text_tokens, tuple(processor.images(meta.image_sizes)))
