"""Everything a run needs before its first step, and what a checkpoint keeps of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from loongforge import __version__
from loongforge.checkpoint import rng
from loongforge.checkpoint.families.registry import family_for
from loongforge.checkpoint.hf_origin import FOLDER
from loongforge.checkpoint.json_file import read_json
from loongforge.checkpoint.lifecycle import Checkpoint, CheckpointStore, resolve
from loongforge.checkpoint.sharded import write_state
from loongforge.components.llm.base import LLMConfig
from loongforge.components.projector.base import ProjectorConfig
from loongforge.components.vision.base import VisionConfig
from loongforge.config.saved import save_config
from loongforge.config.schema import Config
from loongforge.data import builtin
from loongforge.data.build import build_processor
from loongforge.data.loader import TrainLoader
from loongforge.inference.export import export_checkpoint
from loongforge.kernels.backend import Backend
from loongforge.kernels.phases import PhaseClock
from loongforge.model.assembly import bind_kernels, build_model
from loongforge.model.checks import check_model, micro_batch_size
from loongforge.model.compiled import compile_layers, require_compiler
from loongforge.model.execution import Runner
from loongforge.model.weights import model_state
from loongforge.model.work import FlopCounter, find_adapters
from loongforge.parallel.groups import make_groups
from loongforge.parallel.layout import Layout
from loongforge.parallel.session import World
from loongforge.planning.packing import data_part, packing_rules
from loongforge.training.evaluation import Evaluator
from loongforge.training.optimizer import Optimizers
from loongforge.training.refine import CostRefiner
from loongforge.training.state import check_same_form, load_training, save_training
from loongforge.training.weights import check_init_from, load_initial_weights


@dataclass
class Progress:
    """How far a run is. The data cursor is the step: the samples of a step are a pure function of it."""

    step: int = 0
    skipped: int = 0
    """Steps whose update was left out."""
    left_out: int = 0
    """Samples left out, each as often as it was met."""

    def advance(self, step: int, *, skipped: bool) -> None:
        """After a step."""
        self.step, self.skipped = step, self.skipped + int(skipped)


class Setup:
    """Model, data and optimizer of this rank, loaded from the checkpoint that the run goes on from.

    Args:
        config: The validated recipe.
        tree: The same as plain values.
        world: This process among all.
        backend: Its devices.
        run_dir: Where the run lives.
    """

    def __init__(self, config: Config, tree: dict[str, Any], *, world: World, backend: Backend, run_dir: Path) -> None:
        self.config, self.tree, self.world, self.backend = config, tree, world, backend
        self.notes: list[str] = []
        """What the user should know before the first step."""
        self.origin = run_dir / FOLDER
        self.store = CheckpointStore(run_dir / "checkpoints", config.checkpoint.keep)
        self.progress = Progress()
        layout = Layout.from_model(config.model, world.size)
        check_model(config, layout)
        check_init_from(config)
        if config.trainer.export_hf_every:
            family_for(config.model)
        resumed = self._find_checkpoint(run_dir)
        if resumed is not None:
            check_same_form(config, resumed.path)
        if config.data.builtin is not None:
            builtin.build(config.data.builtin, config.data.dir)
        self.groups = make_groups(layout, backend.dist_backend, seed=config.trainer.seed)
        self._open_data(layout)
        self.kernels = bind_kernels(config.kernels, backend)
        self.image_token = self.processor.image_token_id if config.model.vision is not None else None
        self.model = build_model(config, self.groups, image_token=self.image_token)
        if config.trainer.compile == "layers":
            self.notes += [note] if (note := require_compiler(backend)) else []
            compile_layers(self.model)
        self.flops = FlopCounter(config, find_adapters(config, self.model))
        if resumed is None:
            started = load_initial_weights(config, self.model, self.groups)
            self.notes += started.notes
            if world.rank == 0:
                started.keep_origin(self.origin)
        self.notes += config.model.llm.notes() if isinstance(config.model.llm, LLMConfig) else []
        self.phases = PhaseClock(backend.tools())
        self.runner = Runner(self.model, self.groups, encode_window=config.trainer.encode_window, phases=self.phases)
        self.optimizers = Optimizers(config, self.model, self.groups)
        vision = config.model.vision
        patches = vision.num_patches if isinstance(vision, VisionConfig) and not self.processor.any_size else 1
        self.refiner = CostRefiner(config, self.groups, self.loader, patches)
        self.evaluator = Evaluator(config, self.runner, self.processor) if config.data.eval is not None else None
        if resumed is not None:
            self._resume(resumed)

    def _open_data(self, layout: Layout) -> None:
        config = self.config
        vision, projector, llm = config.model.vision, config.model.projector, config.model.llm
        assert isinstance(llm, LLMConfig) and (vision is None or isinstance(vision, VisionConfig))
        assert projector is None or isinstance(projector, ProjectorConfig)
        self.processor = build_processor(config.data, vision, llm, projector=projector)
        self.loader = TrainLoader(
            config.data,
            self.processor,
            seed=config.trainer.seed,
            global_batch_size=config.trainer.global_batch_size,
            micro_batch_size=micro_batch_size(config, layout),
            replicas=self.groups.replicas,
            dp_size=layout.dp,
            pad_multiple=layout.sequence_multiple,
            part=data_part(config, layout, self.world.rank),
            packing=packing_rules(config, layout),
        )

    def _find_checkpoint(self, run_dir: Path) -> Checkpoint | None:
        """The checkpoint to go on from; ranks agree because they look at the same folder."""
        wanted = self.config.run.resume
        if wanted == "never":
            return None
        if wanted != "auto":
            return resolve(Path(wanted))
        found = self.store.latest()
        self.notes += found.warnings
        return found.checkpoint

    def _resume(self, checkpoint: Checkpoint) -> None:
        load_training(checkpoint.path, self.model, self.optimizers, self.groups)
        self.progress = Progress(**checkpoint.meta["progress"])
        if self.world.rank == 0 and (checkpoint.path / FOLDER).is_dir():
            shutil.copytree(checkpoint.path / FOLDER, self.origin, dirs_exist_ok=True)
        self.refiner.restore(checkpoint.meta.get("balance"))
        self._note_kernels(checkpoint)
        self.notes.append(f"going on after step {checkpoint.step} from {checkpoint.path}")
        if checkpoint.meta["layout"] == self._layout():
            rng.restore(read_json(checkpoint.path / f"rng_{self.world.rank}.json"))
        else:
            self.notes.append(
                "the layout has changed: random states start anew (the order of the data does not depend on them)"
            )

    def _note_kernels(self, checkpoint: Checkpoint) -> None:
        """What computes otherwise than before the checkpoint."""
        meta, now = checkpoint.meta, self.kernels.names()
        if meta.get("backend", self.backend.name) != self.backend.name:
            self.notes.append(f"the backend has changed: {meta['backend']} -> {self.backend.name}")
        before: dict[str, str] = meta.get("kernels", {})
        if changed := [f"{op} {before[op]} -> {now[op]}" for op in now if before.get(op, now[op]) != now[op]]:
            self.notes.append("kernels have changed: " + ", ".join(changed))

    def _layout(self) -> dict[str, Any]:
        return self.groups.layout.describe()

    def save(self, step: int) -> Path:
        """Writes a checkpoint after `step` steps. Collective over the world."""
        meta = {
            "version": __version__,
            "progress": asdict(self.progress),
            "layout": self._layout(),
            "balance": self.refiner.state(),
            "backend": self.backend.name,
            "kernels": self.kernels.names(),
        }
        return self.store.save(step, self._write, meta, is_writer=self.world.rank == 0, barrier=self._barrier)

    def export(self, step: int) -> Path:
        """Writes the weights after `step` steps as a Hugging Face folder. Collective over the world."""
        folder = self.origin.parent / "exports" / f"step_{step:08d}"
        aside = folder.with_name(f".{folder.name}.weights")
        if self.world.rank == 0:
            for old in (folder, aside):
                shutil.rmtree(old, ignore_errors=True)
            aside.mkdir(parents=True)
        self._barrier()
        write_state({"model": model_state(self.model, self.groups)}, aside)
        if self.world.rank == 0:
            self._write_files(aside)
            export_checkpoint(self.config, aside, folder)
            shutil.rmtree(aside)
        self._barrier()
        return folder

    def _barrier(self) -> None:
        if self.world.size > 1:
            dist.barrier()

    def _write(self, path: Path) -> None:
        """This rank's part of a checkpoint, which also holds what is needed to use it elsewhere."""
        save_training(path, self.model, self.optimizers, self.groups)
        (path / f"rng_{self.world.rank}.json").write_text(json.dumps(rng.capture()))
        if self.world.rank == 0:
            self._write_files(path)

    def _write_files(self, path: Path) -> None:
        """What a checkpoint holds besides state."""
        save_config(self.tree, path / "config.yaml")
        self.processor.tokenizer.save_pretrained(path / "tokenizer")
        if self.origin.is_dir():
            shutil.copytree(self.origin, path / FOLDER)

    def close(self) -> None:
        """Ends the background reading."""
        self.loader.close()
