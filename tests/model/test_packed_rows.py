"""Rows packed by `data pack` teach what their samples teach one by one: losses and gradients."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from loongforge.data.batch import Batch, collate
from loongforge.data.offline.budget import Budget
from loongforge.data.offline.job import make_job
from loongforge.data.offline.run import pack_data
from loongforge.data.processing import SampleProcessor
from loongforge.data.sources import open_sources
from tests.data.conftest import chat, config, digits, png, processor, write_jsonl
from tests.data.test_packed import _loader
from tests.support.tiny import run_model, tiny_config

__all__ = ["digits", "processor"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """24 samples: chats of none to three images, and raw texts."""
    records: list[dict[str, Any] | str] = []
    for number in range(24):
        names = [f"{number}_{i}.png" for i in range(number % 4)]
        for i, name in enumerate(names):
            (tmp_path / name).write_bytes(png(number * 9 + i))
        question = "<image>" * len(names) + " Which digit is shown?" * (1 + number % 3)
        said = {"text": f"Digit {number} is shown."} if number % 8 == 4 else {"messages": chat(question, str(number))}
        records.append({"id": f"s{number}", "images": names, **said})
    return write_jsonl(tmp_path, records)


def _model(groups: Any, processor: SampleProcessor) -> Any:
    """Every parameter matters."""
    from loongforge.model.assembly import build_model

    torch.manual_seed(0)
    recipe = tiny_config(vocab_size=512, max_seq_len=256)
    model = build_model(recipe, groups, image_token=processor.image_token_id)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.1 * torch.randn_like(param))
    return model


def _learn(model: Any, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss over all label tokens, and its gradients."""
    model.zero_grad()
    losses = torch.cat([model.losses(run_model(model, batch), batch).flatten() for batch in batches])
    losses.mean().backward()
    return losses.mean().item(), {name: param.grad.clone() for name, param in model.named_parameters()}


def _difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest relative one of any parameter's gradient, with a floor of a hundredth of the mean norm."""
    floor = sum(float(grad.norm()) for grad in other.values()) / len(other) / 100
    return max(float((one[name] - other[name]).norm()) / max(float(other[name].norm()), floor) for name in other)


def test_rows_teach_what_samples_teach(groups: Any, processor: SampleProcessor, data: Path, tmp_path: Path) -> None:
    job = make_job(config(str(data)), processor, Budget(160), seed=3, samples=None, window=99, shard_rows=9)
    rows = pack_data(job, tmp_path / "packed", workers=1, watch=lambda _: nullcontext(lambda _: None)).rows
    loader = _loader(processor, str(tmp_path / "packed"), dp=1, rank=0, mode="none", budget=160)
    loader._steps = type(loader._steps)(**{**vars(loader._steps), "global_batch_size": rows})
    packed = loader.load(0).micro_batches[0]
    assert len(packed) == rows and sorted(name for batch in packed for name in batch.ids) == sorted(
        f"s{number}" for number in range(24)
    )
    ((source, _),) = open_sources(str(data), "data.train")
    samples = [processor(source.load(index)) for index in range(24)]
    alone = [collate([sample], processor, rows=1, length=len(sample.ids)) for sample in samples]
    model = _model(groups, processor)
    (loss, gradients), (expected, wanted) = _learn(model, packed), _learn(model, alone)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert _difference(gradients, wanted) < 1e-4

    for batch in packed:  # planted: documents see the ones before them
        batch.cu_seqlens = torch.tensor([0, batch.tokens.shape[1]], dtype=torch.int32)
    loss, gradients = _learn(model, packed)
    assert abs(loss - expected) > 1e-3
    assert _difference(gradients, wanted) > 1e-2
