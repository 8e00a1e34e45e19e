"""A trained model, loaded from a run or a checkpoint, ready to answer or to be evaluated."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loongforge.checkpoint.hf_folder import HFFolder
from loongforge.checkpoint.hf_import import import_whole
from loongforge.checkpoint.lifecycle import Checkpoint, resolve
from loongforge.components.llm.base import LLMConfig
from loongforge.components.projector.base import ProjectorConfig
from loongforge.components.vision.base import VisionConfig
from loongforge.config.schema import Config
from loongforge.data.build import build_processor
from loongforge.data.processing import SampleProcessor
from loongforge.data.tokenizer import load_tokenizer
from loongforge.kernels.backend import select
from loongforge.model.assembly import build_model
from loongforge.model.checks import check_model
from loongforge.model.execution import Runner
from loongforge.model.hf_weights import load_hf_weights
from loongforge.model.weights import load_weights
from loongforge.parallel.groups import make_groups
from loongforge.parallel.layout import Layout
from loongforge.parallel.session import joined_world


@dataclass(frozen=True)
class LoadedModel:
    """A trained model on this rank."""

    config: Config
    runner: Runner
    processor: SampleProcessor
    checkpoint: Checkpoint
    rank: int


@contextlib.contextmanager
def loaded_model(config: Config, path: str) -> Iterator[LoadedModel]:
    """Loads a checkpoint under the layout of `config`, which may differ from the one it was written under.

    Args:
        config: The recipe of the checkpoint, with the user's overrides.
        path: A run, a checkpoint, or a Hugging Face folder.
    """
    is_hf = HFFolder.is_one(Path(path))
    checkpoint = Checkpoint(Path(path), 0, {}) if is_hf else resolve(Path(path))
    backend = select(config.backend)
    backend.set_threads(config.trainer.threads or int(os.environ.get("OMP_NUM_THREADS", "2")))
    with joined_world(backend) as world:
        layout = Layout.from_model(config.model, world.size)
        check_model(config, layout, trains=False)
        groups = make_groups(layout, backend.dist_backend, seed=config.trainer.seed)
        processor = _processor(config, checkpoint)
        image_token = processor.image_token_id if config.model.vision is not None else None
        model = build_model(config, groups, image_token=image_token)
        if HFFolder.is_one(checkpoint.path):
            load_hf_weights(model, import_whole(config.model, checkpoint.path))
        else:
            load_weights(checkpoint.path, model, groups)
        yield LoadedModel(config, Runner(model, groups), processor, checkpoint, world.rank)


def _processor(config: Config, checkpoint: Checkpoint) -> SampleProcessor:
    """The tokenizer is the checkpoint's own, so that one copied elsewhere still works."""
    vision, projector, llm = config.model.vision, config.model.projector, config.model.llm
    assert isinstance(llm, LLMConfig) and (vision is None or isinstance(vision, VisionConfig))
    assert projector is None or isinstance(projector, ProjectorConfig)
    own = checkpoint.path / "tokenizer"
    tokenizer = load_tokenizer(own if own.is_dir() else checkpoint.path, config.data.chat_template)
    return build_processor(config.data, vision, llm, tokenizer, projector=projector)
