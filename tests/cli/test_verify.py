"""`loongforge verify layout`: what it finds, what it prints, how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from loongforge.cli.main import main
from loongforge.training.verify.compare import GRADIENT, LOSS, NORM, PARAMETER

# A projector of one's own; its replicas can forget what the others have seen, as a missing reduction would.
PLUGIN = """
from __future__ import annotations

from dataclasses import dataclass

from loongforge.components.projector.mlp.config import LinearConfig
from loongforge.components.registry import register


@register("projector", "lonely")
@dataclass(kw_only=True)
class LonelyConfig(LinearConfig):
    alone: bool = False

    def build(self, context, *, input_size, output_size):
        import torch

        module = super().build(context, input_size=input_size, output_size=output_size)
        if self.alone and torch.distributed.get_rank() > 0:
            module.linear.weight.register_hook(torch.zeros_like)
        return module
"""

RECIPE = """\
# @package _global_
defaults:
  - /vision@model.vision: clip_vit_tiny
  - /llm@model.llm: llama_tiny
  - /data: digits_vqa

name: lonely
plugins: [lonely.py]
model:
  projector: {type: lonely, init_std: 0.08}
optimizer: {lr: 5e-4}
trainer: {steps: 10, global_batch_size: 32, micro_batch_size: 32}
"""

TP2 = ["+recipe=llava_sft", "launcher.nproc=2", "model.llm.parallel.tp=2"]


def _verify(*argv: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which must leave no temporary folder of ours."""
    (folder / "tmp").mkdir()
    environ = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environ |= {"TMPDIR": str(folder / "tmp"), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "loongforge", "verify", "layout", *argv]
    run = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert list((folder / "tmp").glob("loongforge*")) == []
    return run


def test_json_has_the_differences_of_every_component(tmp_path: Path) -> None:
    run = _verify(*TP2, "--steps", "3", "--json", folder=tmp_path)
    assert run.returncode == 0, run.stderr + run.stdout
    found = json.loads(run.stdout)
    assert found["problems"] == []
    assert found["world_size"] == 2
    assert found["layout"]["llm"] == {"tp": 2, "cp": 1, "dp": 1, "pp": 1, "ranks": [0, 1]}
    assert found["loss"] <= LOSS and found["norm"] <= NORM
    assert list(found["components"]) == ["vision", "projector", "llm"]
    for name, part in found["components"].items():
        assert 0 < part["gradient"] <= GRADIENT  # other orders of the same sums: not the same bits
        assert 0 < part["parameter"] <= PARAMETER
        assert part["gradient_of"].startswith(f"{name}.")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["tmp"]  # no run folder


def test_a_large_layout_is_cut_and_says_so(tmp_path: Path) -> None:
    """Packed as well, with encoders on ranks of their own."""
    wanted = ["launcher.nproc=12", "model.llm.parallel.tp=2", "model.vision.parallel.ranks=[0,1,2,3]"]
    options = ["--max-processes", "3", "--steps", "2", "--packed"]
    run = _verify("+recipe=llava_sft", *wanted, *options, folder=tmp_path)
    assert run.returncode == 0, run.stderr + run.stdout
    assert run.stdout.splitlines()[:2] == [
        "llava_sft on 12 processes: 2 steps of a small copy, on CPU",
        "cut to 3 processes (--max-processes 3)",
    ]
    assert re.search(r"^vision +tp1 dp1 on rank 0 +\d\.\de-\d\d +\d\.\de-\d\d  vision\.\S+$", run.stdout, re.MULTILINE)
    assert re.search(r"^llm +tp2 dp1 on ranks 1-2 ", run.stdout, re.MULTILINE)
    assert "losses differ by at most " in run.stdout
    assert run.stdout.endswith("the layout trains as one process does\n")


@pytest.mark.parametrize("alone", [True, False])
def test_a_fault_of_a_plugin_is_found_and_its_component_named(alone: bool, tmp_path: Path) -> None:
    (tmp_path / "lonely.py").write_text(PLUGIN)
    (tmp_path / "lonely.yaml").write_text(RECIPE)
    wanted = ["+recipe=lonely.yaml", f"model.projector.alone={str(alone).lower()}", "launcher.nproc=2"]
    run = _verify(*wanted, "model.llm.parallel.tp=2", "--steps", "1", folder=tmp_path)
    assert run.returncode == int(alone), run.stderr + run.stdout
    problems = re.findall(r"^  - gradient of (\w+)\.\S+ differs by", run.stdout, re.MULTILINE)
    assert problems == (["projector"] if alone else [])
    assert ("the layout does NOT train as one process does:" in run.stdout) == alone
    assert "Traceback" not in run.stderr


WRONG = {
    "unknown subject": (["layouts"], ["'layouts'", "Did you mean 'layout'?"]),
    "no subject": (["+recipe=llava_sft"], ["'+recipe=llava_sft' cannot be verified", "Known: layout"]),
    "nothing at all": ([], ["recipe"]),
    "no steps": (["layout", *TP2, "--steps", "0"], ["--steps 0", "at least 1"]),
    "steps in words": (["layout", *TP2, "--steps", "few"], ["--steps", "few"]),
    "no processes": (["layout", *TP2, "--max-processes", "0"], ["--max-processes 0", "at least 1"]),
    "too few processes": (["layout", *TP2, "--max-processes", "1"], ["2 processes", "--max-processes 1"]),
    "unknown option": (["layout", *TP2, "--step", "3"], ["--step"]),
    "unknown recipe": (["layout", "+recipe=lava_sft"], ["lava_sft", "llava_sft"]),
    "illegal layout": (["layout", *TP2, "launcher.nproc=3"], ["tp=2", "not 3", "launcher.nproc=2"]),
    "sizes that do not fit": (["layout", "+recipe=llava_sft", "launcher.nproc=3", "model.llm.parallel.tp=3"], ["tp=3"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_message(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    argv, words = WRONG[name]
    assert main(["verify", *argv]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("loongforge: ")
    assert printed.err.count("loongforge: ") == 1
    assert "Traceback" not in printed.err
    assert all(word in printed.err for word in words), printed.err


def test_it_starts_processes_of_its_own_only(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29"}
    for name, value in world.items():
        monkeypatch.setenv(name, value)
    assert main(["verify", "layout", *TP2]) == 2
    assert "outside of torchrun" in capfd.readouterr().err
