"""Adapters that were trained here, on transformers' base model under peft: the logits of the merged export."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loongforge.cli.main import main
from tests.hf.folders import make_folder
from tests.hf.test_export import assert_close, losses, train, write_data


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base folder, a run that adapts it in all components but the projector, which it trains whole, and exports."""
    root = tmp_path_factory.mktemp("adapters")
    base, data = root / "base", write_data(root, images=True)
    make_folder(base, "llava")
    recipe = root / "recipe.yaml"
    _recipe_for(base, recipe)
    adapters = [
        "model.llm.lora={rank: 3, alpha: 5, targets: [q_proj, v_proj, mlp.*]}",
        "model.vision.lora={rank: 2, alpha: 4, dropout: 0.1}",
    ]
    train(recipe, data, root / "run", *adapters, "trainer.steps=4", "optimizer.lr=1e-2")
    for name, option in (("adapter", ["--adapter"]), ("merged", [])):
        assert main(["export", "--checkpoint", str(root / "run"), "--out", str(root / name), *option]) == 0
    return {name: root / name for name in ("base", "run", "adapter", "merged")}


def _recipe_for(base: Path, recipe: Path) -> None:

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["components", "from-hf", str(base)]) == 0
    recipe.write_text(printed.getvalue())


EXPERTS = {
    "everything": ("{rank: 3, alpha: 5, dropout: 0.1, lr_scale: 2}", "launcher.nproc=2", "model.llm.parallel.ep=2"),
    "halves of some experts": (
        "{rank: 2, alpha: 6, targets: [experts.*.gate_proj, experts.3.up_proj, experts.2.down_proj, q_proj]}",
        "launcher.nproc=2",
        "model.llm.parallel.tp=2",
    ),
    "one projection of the experts": ("{rank: 2, targets: [experts.*.up_proj]}",),
    "dense layers beside experts": ("{rank: 2, targets: [layers.1.mlp.*]}",),
}


@pytest.mark.parametrize("case", EXPERTS)
def test_peft_loads_adapters_of_experts(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Transformers stacks a layer's experts in two parameters; layer 1 of this model is a dense one."""
    import peft
    from transformers import AutoModelForCausalLM

    lora, *layout = EXPERTS[case]
    base, data, recipe = tmp_path / "base", write_data(tmp_path, images=False), tmp_path / "recipe.yaml"
    make_folder(base, "qwen3 moe")
    _recipe_for(base, recipe)
    batch = ["trainer.global_batch_size=4", "trainer.micro_batch_size=2"]
    train(recipe, data, tmp_path / "run", f"model.llm.lora={lora}", *layout, *batch, "optimizer.lr=5e-2")
    for name, option in (("adapter", ["--adapter"]), ("merged", [])):
        assert main(["export", "--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / name), *option]) == 0
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = _text_logits(model)
    found = _text_logits(peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter")))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert (found - _text_logits(merged)).abs().max() < 1e-4
    assert (found - before).abs().max() > 1e-2, "training has changed nothing"
    assert_close(losses(tmp_path / "run", data, capsys), losses(tmp_path / "merged", data, capsys))


@torch.no_grad()
def _text_logits(model: Any) -> torch.Tensor:
    ids = torch.randint(4, 128, (2, 20), generator=torch.Generator().manual_seed(0))
    return model.eval()(input_ids=ids).logits


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    config = model.config
    size = config.vision_config.image_size
    count = (size // config.vision_config.patch_size) ** 2
    ids = torch.randint(4, 128, (2, 12 + count), generator=generator)
    ids[:, 3 : 3 + count] = config.image_token_id
    pixels = torch.randn(2, 3, size, size, generator=generator)
    return model.eval()(input_ids=ids, pixel_values=pixels).logits


def test_peft_loads_the_adapter(trained: dict[str, Path]) -> None:
    import peft
    from transformers import AutoModelForImageTextToText

    base = AutoModelForImageTextToText.from_pretrained(trained["base"], dtype=torch.float32)
    before = _logits(base)
    adapted = peft.PeftModel.from_pretrained(base, str(trained["adapter"]))
    expected = _logits(AutoModelForImageTextToText.from_pretrained(trained["merged"], dtype=torch.float32))
    found = _logits(adapted)
    assert (found - expected).abs().max() < 1e-4
    assert (found - before).abs().max() > 1e-2, "training has changed nothing"


def test_the_folder_says_what_it_is(trained: dict[str, Path]) -> None:
    described = json.loads((trained["adapter"] / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(trained["base"])
    assert (described["r"], described["lora_alpha"]) == (3, 5.0)
    assert set(described["rank_pattern"].values()) == {2}
    assert set(described["alpha_pattern"].values()) == {4.0}
    assert not any("o_proj" in name and "language_model" in name for name in described["target_modules"])
    assert all("projector" in name for name in described["modules_to_save"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["++model.llm.lora=null", "++model.vision.lora=null"], "no component of this run has adapters"),
        (["++model.vision.lora=null"], "model.vision was trained whole"),
    ],
)
def test_what_is_no_adapter_is_refused(
    change: list[str], message: str, trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", "--checkpoint", str(trained["run"]), "--out", str(out), "--adapter", *change]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
