"""Phase times, traces, memory that has run out, and compiled layers of whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loongforge.config.errors import RunError, UserError
from loongforge.kernels.backend import Support, select
from loongforge.kernels.phases import PHASES
from tests.training.recipes import quick_config, steps_of

select("auto").activate()

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Run:
    """Trains three steps in this process; returns the run's folder."""
    from loongforge.training.main import run as train

    def start(name: str, *overrides: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / name
        wanted = ("trainer.steps=3", "trainer.global_batch_size=4", *overrides)
        assert train(*quick_config(folder, data_dir, *wanted)) == 0
        return folder

    return start


@pytest.fixture(scope="module")
def plain(run: Run) -> Path:
    """A run without anything."""
    return run("plain")


def _records(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_phases_of_every_step_add_up_to_it(plain: Path) -> None:
    for record in _records(plain):
        times = {name: record[f"time/{name}"] for name in PHASES}
        assert sum(times.values()) == pytest.approx(record["step_time_s"], rel=1e-9)
        assert times["pipeline"] == 0
        assert all(times[name] > 0 for name in PHASES if name != "pipeline")
        assert record["data_wait_s"] == pytest.approx(times["data"])
        named = sum(times.values()) - times["other"]
        assert named > 0.6 * record["step_time_s"]  # most has a name, also in a step this small


def test_a_slow_part_shows_in_its_phase(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from loongforge.components.llm.llama.module import LlamaModel
    from loongforge.training.optimizer import Optimizers

    def slowed(real: Any, seconds: float) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            time.sleep(seconds)
            return real(*args, **options)

        return call

    monkeypatch.setattr(LlamaModel, "losses", slowed(LlamaModel.losses, 0.2))
    monkeypatch.setattr(Optimizers, "step", slowed(Optimizers.step, 0.3))
    last = _records(run("slow", "trainer.micro_batch_size=4"))[-1]
    assert last["time/llm_forward"] > 0.2 and last["time/optimizer"] > 0.3
    assert last["time/llm_backward"] < last["time/llm_forward"]


def test_the_model_s_table_has_three_digits(capsys: pytest.CaptureFixture[str]) -> None:
    from loongforge.training.telemetry.console import Console

    row = {"component": "llm", "type": "x", "layout": "tp1", "dtype": "fp32", "trains": "whole"}
    console = Console(mode="plain", total_steps=1, every=1)
    console.model([{**row, "params": 999_720, "flops_per_token": 999_400}])
    assert capsys.readouterr().out.splitlines()[1].split()[-6:] == ["1", "M", "1", "M", "999", "k"]


def test_a_table_of_phases_stands_at_the_end(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("table")
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("phase of a step"))
    names = [line.split()[0] for line in lines[first + 1 : first + 10]]
    assert names == [*(name for name in PHASES if name != "pipeline"), "step"]
    shares = [float(line.split()[2].rstrip("%")) for line in lines[first + 1 : first + 9]]
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_traces_of_chosen_steps_change_nothing(run: Run, plain: Path) -> None:
    traced = run("traced", "profile.steps=[1,3]", "profile.shapes=true", "profile.memory=true")
    assert steps_of(traced) == steps_of(plain)
    names = [f"step_0000000{number}.rank_0.{kind}" for number in (1, 3) for kind in ("json", "txt")]
    assert sorted(path.name for path in (traced / "profiles").iterdir()) == names
    trace = json.loads((traced / "profiles" / names[2]).read_text())
    seen = {event.get("name") for event in trace["traceEvents"]}
    assert {name for name in PHASES if name not in ("pipeline", "other")} <= seen and "step 3" in seen
    assert any("Input Dims" in event.get("args", {}) for event in trace["traceEvents"])
    table = (traced / "profiles" / names[3]).read_text()
    assert "llm_backward" in table and "aten::" in table and "Input Shapes" in table and "CPU Mem" in table


def test_other_ranks_trace_nothing(tmp_path: Path) -> None:
    from loongforge.config.profile_schema import ProfileConfig
    from loongforge.kernels.phases import PhaseClock
    from loongforge.training.trace import Tracer

    backend = select("auto")
    phases = PhaseClock(backend.tools())
    for rank, ranks in ((1, [0]), (2, [1, 2]), (5, None)):
        tracer = Tracer(ProfileConfig(steps=[2], ranks=ranks), backend, phases, tmp_path, rank)
        for step in (1, 2):
            with tracer.step(step):
                assert phases.tracing == (step == 2 and rank != 1)
    assert {path.stem for path in (tmp_path / "profiles").iterdir()} == {f"step_00000002.rank_{n}" for n in (2, 5)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("profile.steps=[2,9]", r"profile.steps=\[2, 9\]: there is no step 9; allowed: 1 .. 3 \(trainer.steps\)"),
        ("profile.steps=[0]", "different whole numbers, each at least 1"),
        ("profile.steps=[-2]", "different whole numbers, each at least 1"),
        ("profile.steps=[2,2]", "different whole numbers"),
        ("profile.ranks=[1]", r"profile.ranks=\[1\]: there is no rank 1; allowed: 0 .. 0, or null"),
        ("profile.ranks=[-1]", "each at least 0"),
        ("profile.step=[1]", "Did you mean 'profile.steps'"),
    ],
)
def test_steps_and_ranks_that_will_not_be_are_refused(run: Run, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run("refused", override)


def test_utilisation_needs_a_peak_and_adds_up(plain: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    record = _records(plain)[-1]
    parts = [record[f"tflops/{name}"] for name in ("vision", "projector", "llm")]
    assert sum(parts) == pytest.approx(record["tflops"]) and min(parts) > 0
    assert record["mfu"] is None and not any(name.startswith(("mfu/", "hfu")) for name in record)
    monkeypatch.setattr(type(select("auto")), "peak_flops", lambda self, dtype: {"fp32": 1e12}[dtype])
    record = _records(run("peak", "trainer.recompute=full"))[-1]
    assert record["mfu"] == pytest.approx(record["tflops"])
    assert sum(record[f"mfu/{name}"] for name in ("vision", "projector", "llm")) == pytest.approx(record["mfu"])
    assert record["mfu"] * 1.1 < record["hfu"] < record["mfu"] * 4 / 3 + 1e-12


def _fails(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The loss runs out of memory in its `call`-th use."""
    from loongforge.components.llm.llama.module import LlamaModel

    real, calls = LlamaModel.losses, [0]

    def losses(self: Any, *args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB.\nmore lines")
        return real(self, *args, **options)

    monkeypatch.setattr(LlamaModel, "losses", losses)


def test_memory_that_runs_out_is_explained(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _fails(monkeypatch, 2)
    with pytest.raises(RunError) as caught:
        run("oom")
    message = str(caught.value)
    assert "rank 0 (CPU) in step 2, phase llm_forward" in message
    assert all(kind in message for kind in ("parameters", "gradients", "optimizer states", "activations"))
    advice = [line.split()[0] for line in message.splitlines() if line.startswith("    ")]
    assert {"trainer.recompute=full", "trainer.precision=bf16", "trainer.micro_batch_size=1"} <= set(advice)
    assert "optimizer.distributed=true" not in advice  # there is no other rank
    assert "Tried to allocate 20.00 GiB." in message and "more lines" not in message
    text = Path(message.split("largest tensors: ")[1].splitlines()[0]).read_text()
    assert "exp_avg of llm" in text and "OutOfMemoryError" in text and "vision.patch_embedding.weight" in text


def test_objects_that_cannot_be_asked_do_not_hide_it() -> None:
    import weakref

    from loongforge.training.out_of_memory import _living

    class Gone: ...

    dead = weakref.proxy(Gone())  # of which already `isinstance` raises
    mine = torch.zeros(3)
    assert any(tensor is mine for _, tensor in _living())
    del dead


def test_other_errors_stay_what_they_are(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from loongforge.components.llm.llama.module import LlamaModel

    def losses(*args: Any) -> Any:
        raise RuntimeError("shapes")

    monkeypatch.setattr(LlamaModel, "losses", losses)
    with pytest.raises(RuntimeError, match="shapes") as caught:
        run("other")
    assert not isinstance(caught.value, RunError)


def test_memory_that_runs_out_ends_the_command_with_1(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from loongforge.cli.main import main
    from tests.training.recipes import QUICK

    _fails(monkeypatch, 1)
    where = [f"run.dir={tmp_path / 'run'}", f"data.dir={data_dir}", "trainer.steps=2"]
    assert main(["train", "+recipe=llava_sft", *QUICK, *where]) == 1
    said = capsys.readouterr().err
    assert "loongforge: out of memory on rank 0" in said and "Traceback" not in said


def test_a_backend_that_compiles_nothing_refuses(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = type(select("auto"))
    real = backend.capability
    no = Support("no", "documented: here")
    monkeypatch.setattr(backend, "capability", lambda self, name: no if name == "compile" else real(self, name))
    with pytest.raises(UserError, match=r"trainer.compile='layers': backend cpu compiles nothing \(documented: here\)"):
        run("compiled", "trainer.compile=layers")
