"""Adapters of every family under peft on transformers' model: our logits, and those of the merged export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loongforge.config.schema import Config, LoraConfig
from loongforge.data.batch import Batch
from tests.hf.cases import CASES, Case
from tests.hf.layouts import LAYOUTS, apply
from tests.hf.ours import adapted_run
from tests.hf.test_parity import recipe, synthetic

OWN_LAYERS = ("qwen3", "qwen3 moe", "internvl of 6B's kind", "llava_next", "qwen2_vl", "qwen2.5_vl")
"""Families that have layers, or parameters outside of layers, that no other has."""


def _adapted(folder: Path, name: str) -> Config:
    """A recipe with adapters of two kinds, an embedding and a projector that train whole."""
    config = recipe(folder)
    config.model.llm.lora = LoraConfig(rank=3, alpha=5.0)
    config.model.llm.train = ["embedding", "layers.2.*.linear_qkv"]
    if config.model.vision is not None:
        config.model.vision.lora = LoraConfig(rank=2, alpha=4.0)
    if name == "llava_next":
        config.model.projector.train = ["!newline"]
    return config


@torch.no_grad()
def _their_logits(model: Any, case: Case, batch: Batch) -> list[torch.Tensor]:
    rows = model.eval()(**case.inputs(batch)).logits
    return [row[:length] for row, length in zip(rows, batch.lengths.tolist(), strict=True)]


def _exports(config: Config, checkpoint: Path) -> tuple[Path, Path]:
    """Adapter and merged."""
    from loongforge.checkpoint.hf_origin import FOLDER, read_origin
    from loongforge.inference.export import checkpoint_weights, write_export
    from loongforge.inference.export_adapter import write_adapter

    adapter, merged = (checkpoint.with_name(name) for name in ("adapter", "merged"))
    write_adapter(config, checkpoint, adapter)
    weights, origin = checkpoint_weights(config, checkpoint), read_origin(checkpoint / FOLDER)
    write_export(config, weights, origin, checkpoint, merged, dtype=None, max_bytes=10**5)
    return adapter, merged


def _most(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", OWN_LAYERS)
def test_peft_computes_what_we_do(name: str, rank_pool: Any, tmp_path: Path) -> None:
    _check(name, rank_pool, tmp_path)


@pytest.mark.parametrize("name", ["qwen2.5_vl", "qwen3 moe"])
def test_adapters_of_tensor_parallel_ranks(name: str, rank_pool: Any, tmp_path: Path) -> None:
    _check(name, rank_pool, tmp_path, "tp2")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in OWN_LAYERS])
def test_other_families(name: str, rank_pool: Any, tmp_path: Path) -> None:
    _check(name, rank_pool, tmp_path)


def _check(name: str, rank_pool: Any, tmp_path: Path, layout: str = "one process") -> None:
    import peft

    case = CASES[name]
    model = case.model(0)
    model.save_pretrained(tmp_path / "base")
    config = _adapted(tmp_path / "base", name)
    batch = synthetic(config).global_batch(0, 1)
    ranks = rank_pool(LAYOUTS[layout][0]).run(adapted_run, apply(config, layout), tmp_path / "run", timeout=120)
    ours = {sample: found for rank in ranks for sample, found in rank.logits.items()}
    logits = [torch.from_numpy(ours[sample]) for sample in batch.ids]
    adapter, merged = _exports(config, tmp_path / "run")
    base = _their_logits(model, case, batch)
    whole = _their_logits(type(model).from_pretrained(merged, dtype=torch.float32), case, batch)
    adapted = _their_logits(peft.PeftModel.from_pretrained(model, str(adapter)), case, batch)
    assert _most(adapted, logits) < 1e-4
    assert _most(adapted, whole) < 1e-4
    assert _most(adapted, base) > 0.1, "the adapter changes nothing"


def test_what_peft_cannot_take_along_is_named(rank_pool: Any, tmp_path: Path) -> None:
    """The learned row between lines of features is a parameter of the whole model."""
    from loongforge.config.errors import UserError
    from loongforge.inference.export_adapter import write_adapter

    CASES["llava_next"].model(0).save_pretrained(tmp_path / "base")
    config = _adapted(tmp_path / "base", "llava_next")
    config.model.projector.train = []
    rank_pool(1).run(adapted_run, config, tmp_path / "run", timeout=120)
    with pytest.raises(UserError, match=r"model\.projector trained 'newline', .*train=\['!newline'\]"):
        write_adapter(config, tmp_path / "run", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
