"""The comparison with transformers on a GPU, at tiny size on the CPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from loongforge.kernels.backend import select
from loongforge.model.flops import num_params
from loongforge.parallel.session import joined_world
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
        assert 0 < side["mfu"] < side["mfu_all_positions"]
    ours = result["sides"]["ours"]["samples_per_s"]
    assert result["ratio"] == pytest.approx(ours / result["sides"][result["fastest_of_theirs"]]["samples_per_s"])


@pytest.mark.parametrize("frozen", [[], ["vision"]])
def test_flops_are_those_that_torch_counts(frozen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a step of ours, but for the masked half of attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    bench = bench_script("gpu_vlm", monkeypatch)
    given = ["--size", "tiny", "--samples", "2", "--steps", "1", "--precision", "fp32", "--frozen", *frozen]
    monkeypatch.setattr(sys, "argv", ["gpu_vlm.py", *given])
    args, backend = bench.parse(), select("cpu")
    config = bench.make_config(args)
    steps = bench.draw_steps(config, args)
    needed, usual = bench.flops_of(config, steps[0])
    with joined_world(backend):
        ours = bench.make_sides(config, args, backend, steps)["ours"]
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as seen:
            ours.step(0)
    llm = config.model.llm
    hidden = sum(len(sample) * (len(sample) - 1) // 2 for sample in steps[0])
    masked = 3 * hidden * 4 * llm.num_heads * llm.head_size * llm.num_layers
    assert needed + masked == pytest.approx(seen.get_total_flops(), rel=1e-9)
    spared = sum(len(sample) - sample.label_tokens for sample in steps[0])
    assert usual - needed == 3 * 2 * spared * llm.hidden_size * llm.vocab_size


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
