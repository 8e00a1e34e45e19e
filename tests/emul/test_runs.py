"""Detection, refusals, collectives and training with the emulated torch_xmlir, each in processes of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.emul.environment import emulated, run


def _backends(environ: dict[str, str]) -> dict[str, Any]:
    done = run(environ, "-m", "loongforge", "backends", "--json")
    assert done.returncode == 0, done.stderr
    return {one["name"]: one for one in json.loads(done.stdout)}


def test_it_is_found_before_cuda_and_says_that_it_is_emulated(tmp_path: Path) -> None:
    found = _backends(emulated(tmp_path))
    assert list(found)[:2] == ["kunlun", "cuda"]
    kunlun = found["kunlun"]
    assert (kunlun["state"], kunlun["emulated"], kunlun["auto"], kunlun["devices"]) == ("emulated", True, True, 8)
    assert (kunlun["name"], kunlun["torch_device"]) == ("kunlun", "cuda")  # two fields
    assert any("XCCL" in sign for sign in kunlun["evidence"])
    text = run(emulated(tmp_path), "-m", "loongforge", "backends", "--strict")
    assert text.returncode == 3
    assert "EMULATED" in text.stdout.splitlines()[0]
    assert "strict: kunlun is emulated" in text.stdout


def test_installed_but_not_patched_is_no_reason_to_take_another(tmp_path: Path) -> None:
    environ = emulated(tmp_path, LF_KUNLUN_HOOK="fails")
    kunlun = _backends(environ)["kunlun"]
    assert (kunlun["state"], kunlun["available"]) == ("broken", False)
    assert "has not taken over torch" in kunlun["problems"][0]["text"]
    done = run(environ, "-m", "loongforge", "train", "+recipe=llava_sft", f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "backend=auto found Kunlun XPU" in done.stderr
    assert not (tmp_path / "run").exists()


def test_settings_are_refused_before_the_import(tmp_path: Path) -> None:
    done = run(emulated(tmp_path, XPU_RUN_MODE="1"), "-m", "loongforge", "backends", "--backend", "kunlun")
    assert done.returncode == 2
    assert "hardware registers" in done.stderr
    assert "SYMBOL_REWRITE" not in done.stderr


def test_kccl_serves_two_processes(tmp_path: Path) -> None:
    """`nccl` renamed over gloo; and a collective that is wrong is noticed."""
    command = ("-m", "loongforge", "backends", "verify", "--backend", "kunlun", "--nproc", "2", "--only", "collectives")
    report = json.loads(run(emulated(tmp_path), *command, "--json").stdout)
    stage = next(stage for stage in report["stages"] if stage["stage"] == "collectives")
    assert (stage["outcome"], report["emulated"], report["outcome"]) == ("pass", True, "incomplete")
    assert any("2 processes" in check["note"] for check in stage["checks"])
    report = json.loads(run(emulated(tmp_path), *command, "--inject", "collective", "--json").stdout)
    assert report["outcome"] == "fail"


def test_llava_sft_learns_as_on_cpu(tmp_path: Path) -> None:
    """Twenty steps end to end, data, checkpoint and log included."""
    losses: dict[str, list[float]] = {}
    for backend in ("cpu", "kunlun"):
        folder = tmp_path / backend
        options = [f"backend={backend}", f"run.dir={folder}", f"data.dir={tmp_path / 'data'}", "trainer.steps=20"]
        quick = ["trainer.eval_every=0", "trainer.sanity_samples=0", "trainer.eval_samples=8", "launcher.nproc=1"]
        done = run(emulated(tmp_path), "-m", "loongforge", "train", "+recipe=llava_sft", *options, *quick)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses[backend] = [line["loss"] for line in lines if "loss" in line]
        used = json.loads((folder / "kernels.json").read_text())
        assert used["emulated"] == (backend == "kunlun") == ("EMULATED" in done.stdout)
        names = {kernel["op"]: kernel["implementation"] for kernel in used["kernels"]}
        assert names["rms_norm"] == ("xmlir" if backend == "kunlun" else "torch")
    assert len(losses["cpu"]) == 20
    assert max(abs(a - b) for a, b in zip(*losses.values(), strict=True)) < 1e-5
