"""The comparison with transformers on a GPU, at tiny size on the CPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from loongforge.model.flops import num_params
from tests.support.bench import bench_script, run_bench


def test_gpu_vlm() -> None:
    """It ends with an error where the sides' first losses differ."""
    options = ["--size", "tiny", "--backend", "cpu", "--precision", "fp32", "--samples", "4", "--steps", "2"]
    result = run_bench("gpu_vlm", *options, "--blocks", "1", "--threads", "1", "--peak-tflops", "0.1")
    assert set(result["sides"]) >= {"ours", "transformers, sdpa, padded", "transformers, sdpa, packed"}
    assert {"torch", "transformers", "megatron-core"} <= set(result["versions"])
    assert result["device"] and "gpu_vlm.py --size tiny" in result["command"]
    for side in result["sides"].values():
        assert side["mfu"] == pytest.approx(side["tflops"] / 0.1)
        assert 0 < side["mfu_labelled"] < side["mfu"]
    ours = result["sides"]["ours"]["samples_per_s"]
    assert result["ratio"] == pytest.approx(ours / result["sides"][result["fastest_of_theirs"]]["samples_per_s"])


def test_flops_of_a_benchmark_s_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen encoder costs its forward pass; the output layer, where only labels count, three times its labels'."""
    bench = bench_script("gpu_vlm", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["gpu_vlm.py", "--size", "tiny", "--samples", "1", "--steps", "1"])
    args = bench.parse()
    frozen = bench.make_config(args)
    ((sample,),) = bench.draw_steps(frozen, args)
    args.frozen = []
    whole, labelled = bench.flops_of(frozen, [sample])
    everything, _ = bench.flops_of(bench.make_config(args), [sample])
    assert everything - whole == pytest.approx(2 * len(sample.images) * frozen.model.vision.flops())
    spared = len(sample) - sample.label_tokens
    assert whole - labelled == 3 * 2 * spared * frozen.model.llm.hidden_size * frozen.model.llm.vocab_size


@pytest.mark.parametrize("size", ["tiny", "1b", "1.5b"])
def test_both_sides_have_one_size(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the last encoder layer and norm, which the features do not depend on and ours does not build."""
    bench, sides = bench_script("gpu_vlm", monkeypatch), bench_script("vlm_sides", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["gpu_vlm.py", "--size", size])
    config = bench.make_config(bench.parse())
    model = sides.plain_model(config, SimpleNamespace(device=lambda: torch.device("meta")))
    sizes = {name: param.numel() for name, param in model.named_parameters()}
    unused = (f"encoder.layers.{config.model.vision.built_layers}.", "post_layernorm", ".head.")
    theirs = sum(number for name, number in sizes.items() if not any(part in name for part in unused))
    assert theirs == sum(num_params(config.model).values())
    frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
    assert frozen == {name for name in sizes if "vision_tower" in name}


def test_parked_tensors_return(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = bench_script("vlm_sides", monkeypatch)
    whole = torch.arange(6.0)
    view, parking = whole[2:4], sides.Parking()
    parking.park([whole, view])
    assert whole.untyped_storage().nbytes() == 0
    parking.wake()
    assert whole.tolist() == [0, 1, 2, 3, 4, 5] and view.tolist() == [2, 3]
    view.zero_()
    assert whole.tolist() == [0, 1, 0, 0, 4, 5]


def test_passes_that_do_not_fit_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    sides, rows = bench_script("vlm_sides", monkeypatch), bench_script("rows", monkeypatch)
    draw, limit = np.random.default_rng(0), 2
    sizes = dict(image_tokens=2, image_size=2, vocab_size=9)
    samples = [rows.draw_sample(draw, text=5, images=1, **sizes) for _ in range(7)]

    class Model(torch.nn.Module):
        dtype, seen = torch.float32, 0

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, input_ids: torch.Tensor, num_items_in_batch: int, **_: Any) -> Any:
            if len(input_ids) > limit:
                raise torch.OutOfMemoryError
            self.seen += len(input_ids)
            return SimpleNamespace(loss=self.weight * len(input_ids) / num_items_in_batch)

        def set_attn_implementation(self, name: str) -> None: ...

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    device = torch.zeros(()).device
    side = sides.PlainSide(model, optimizer, attention="sdpa", steps=[[samples]], packed=False, device=device)
    assert side.loss() == pytest.approx(7 / sum(sample.label_tokens for sample in samples))
    assert side.passes == 4 and model.seen == 7
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        side.step(0)
