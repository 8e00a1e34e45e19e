"""Bad input ends a run with one clear message and exit code 2, before anything is half-written."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from loongforge.cli.main import main
from tests.training.recipes import QUICK

Train = Callable[..., tuple[int, str]]


@pytest.fixture
def train(data_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains two steps through the command line; returns the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str) -> tuple[int, str]:
        fixed = ["trainer.steps=2", f"data.dir={data_dir}", "run.dir=run"]
        code = main(["train", "+recipe=llava_sft", *QUICK, *fixed, *overrides])
        printed = capfd.readouterr()
        assert "Traceback" not in printed.out + printed.err, printed.err
        return code, printed.err + printed.out

    return run


def _png(size: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (size, size), 100).save(buffer, "PNG")
    return buffer.getvalue()


def _jsonl(folder: Path, *samples: dict[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "good.png").write_bytes(_png())
    (folder / "bad.png").write_bytes(_png()[:50])
    lines = [json.dumps({"id": f"s{n}", **sample}) for n, sample in enumerate(samples)]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "data.jsonl"


def _sample(
    question: str = "<image>\nWhich digit is shown?", answer: str = "7", image: str = "good.png"
) -> dict[str, object]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"images": [image], "messages": messages}


CONFIG = {
    "unknown key": (["trainer.stps=3"], ["trainer.stps", "trainer.steps"]),
    "unknown key after +": (["+trainer.stps=3"], ["trainer.stps", "trainer.steps"]),
    "wrong type": (["trainer.steps=abc"], ["trainer.steps", "abc", "whole number"]),
    "unknown recipe": (["recipe=lava_sft"], ["lava_sft", "llava_sft"]),
    "unknown backend": (["backend=cdua"], ["cdua", "cpu"]),
    "missing shard": (["data.train=nothing-*.tar"], ["nothing-*.tar"]),
    "heads by tp": (["launcher.nproc=3", "model.llm.parallel.tp=3"], ["num_heads=4", "tp=3"]),
    "processes by layout": (["launcher.nproc=3", "model.llm.parallel.tp=2"], ["tp=2", "3", "launcher.nproc=2"]),
    "batch by ranks": (["launcher.nproc=4", "trainer.global_batch_size=6"], ["global_batch_size=6", "dp=4"]),
    "hidden sizes": (["model.vision.num_heads=5"], ["model.vision", "num_heads=5"]),
    "patches": (["model.vision.patch_size=5"], ["image_size=32", "patch_size=5"]),
    "context": (["model.llm.max_seq_len=4"], ["4 tokens", "max_seq_len=4"]),
    "everything frozen": ([f"model.{c}.freeze=true" for c in ("vision", "projector", "llm")], ["frozen"]),
    "no such weights": (["model.llm.init_from=nowhere"], ["model.llm.init_from", "nowhere"]),
    "not available yet": (["model.llm.parallel.ep=2", "launcher.nproc=2"], ["model.llm.parallel.ep=2"]),
}


@pytest.mark.parametrize("name", CONFIG)
def test_config(name: str, train: Train) -> None:
    overrides, words = CONFIG[name]
    code, printed = train(*overrides)
    assert code == 2, printed
    assert all(word in printed for word in words), printed
    assert not Path("run/checkpoints").exists()
    assert not Path("run/metrics.jsonl").exists()


def test_all_errors_at_once(train: Train) -> None:
    code, printed = train("trainer.stps=3", "optimizer.lr=fast", "+model.llm.hiden_size=3")
    assert code == 2
    assert all(word in printed for word in ("trainer.stps", "optimizer.lr", "fast", "hidden_size"))


def test_unwritable_run_folder(train: Train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, printed = train("run.dir=file/run")
    assert code == 2
    assert "run.dir" in printed


SAMPLES = {
    "undecodable image": (_sample(image="bad.png"), ["cannot be decoded", "s0"]),
    "missing image": (_sample(image="nothing.png"), ["nothing.png"]),
    "more placeholders than images": (_sample("<image><image> Which?"), ["2 placeholders", "1 images", "s0"]),
    "fewer placeholders than images": (_sample("Which?"), ["0 placeholders", "1 images", "s0"]),
    "longer than the context": (_sample(answer="7 " * 200), ["longer than 128", "s0"]),
    "no label tokens": (
        {"images": ["good.png"], "messages": [{"role": "user", "content": "<image> Which?"}]},
        ["assistant", "s0"],
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_sample(name: str, train: Train, tmp_path: Path) -> None:
    sample, words = SAMPLES[name]
    code, printed = train(f"data.train={_jsonl(tmp_path / 'mine', sample)}")
    assert code == 2, printed
    assert all(word in printed for word in words), printed


def test_truncated_tar(train: Train, data_dir: Path, tmp_path: Path) -> None:
    shard = tmp_path / "train-00000.tar"
    shutil.copy(data_dir / "train-00000.tar", shard)
    with open(shard, "r+b") as file:
        file.truncate(shard.stat().st_size * 2 // 3)
    code, printed = train(f"data.train={shard}")
    assert code == 2
    assert "train-00000.tar" in printed


def test_skip_replaces_and_notes(train: Train, tmp_path: Path) -> None:
    samples = [_sample(answer=str(n % 10)) for n in range(6)] + [_sample(image="bad.png"), _sample("Which?")]
    data = _jsonl(tmp_path / "mine", *samples)
    code, printed = train(f"data.train={data}", "data.bad_sample=skip", "trainer.steps=3")
    assert code == 0, printed
    noted = [json.loads(line) for line in Path("run/quarantine.jsonl").read_text().splitlines()]
    assert {entry["id"] for entry in noted} == {"s6", "s7"}
    assert all(entry["reason"] and entry["step"] >= 0 for entry in noted)


def test_skip_has_a_limit(train: Train, tmp_path: Path) -> None:
    samples = [_sample()] * 4 + [_sample(image="bad.png")] * 4
    data = _jsonl(tmp_path / "mine", *samples)
    code, printed = train(f"data.train={data}", "data.bad_sample=skip", "data.max_bad=2")
    assert code == 2
    assert "data.max_bad=2" in printed


def _with_left_out(folder: Path) -> Path:
    """A quarter of the samples cannot be read, a quarter is too long."""
    kinds = [_sample(), _sample(), _sample(image="bad.png"), _sample(answer="7 " * 200)]
    return _jsonl(folder, *(kinds[n % 4] for n in range(16)))


def _left_out() -> list[int]:
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    return [line["left_out"] for line in lines if "loss" in line]


def test_too_long_samples_are_dropped(train: Train, tmp_path: Path) -> None:
    data = _jsonl(tmp_path / "mine", *[_sample(), _sample(answer="7 " * 200)] * 8)
    options = [f"data.train={data}", "data.too_long=drop", "data.max_bad=0", "logging.every=1"]
    code, printed = train(*options)
    assert code == 0, printed
    noted = [json.loads(line) for line in Path("run/quarantine.jsonl").read_text().splitlines()]
    assert noted and all(entry["dropped"] and "longer than 128" in entry["reason"] for entry in noted)
    counts = _left_out()
    assert 0 < counts[0] <= counts[1]
    rows = [line.split() for line in printed.splitlines() if " out " in line or line.split()[:1] in (["1/2"], ["2/2"])]
    header, *lines = [row for row in rows if row[0] in ("step", "1/2", "2/2")]
    assert header[-3:] == ["left", "out", "eta"]
    assert [int(line[-2]) for line in lines] == counts


def test_too_long_samples_are_cut(train: Train, tmp_path: Path) -> None:
    code, printed = train(
        f"data.train={_jsonl(tmp_path / 'mine', _sample(answer='7 ' * 200))}", "data.too_long=truncate_text"
    )
    assert code == 0, printed
    assert not Path("run/quarantine.jsonl").exists()


def test_ratio_of_samples_left_out(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loongforge.data.quarantine.MIN_SEEN", 8)
    data = [f"data.train={_with_left_out(tmp_path / 'mine')}", "data.bad_sample=skip", "data.too_long=drop"]
    code, printed = train(*data, "data.max_bad_ratio=0.2")
    assert code == 2
    assert "data.max_bad_ratio=0.2" in printed and "left out" in printed
    assert Path("run/quarantine.jsonl").exists()
    assert train(*data, "data.max_bad_ratio=0.95", "run.dir=other")[0] == 0


def test_count_of_samples_left_out_goes_on_after_resume(train: Train, tmp_path: Path) -> None:
    data = [f"data.train={_with_left_out(tmp_path / 'mine')}", "data.bad_sample=skip", "data.too_long=drop"]
    assert train(*data, "trainer.steps=4")[0] == 0
    whole = _left_out()
    shutil.rmtree("run")
    assert train(*data, "trainer.steps=4", "checkpoint.every=2")[0] == 0
    shutil.rmtree("run/checkpoints/step_00000004")
    Path("run/checkpoints/LATEST").write_text("step_00000002")
    code, printed = train(*data, "trainer.steps=4", "checkpoint.every=2")
    assert code == 0 and "going on after step 2" in printed, printed
    assert _left_out() == whole and whole[0] < whole[-1]


def test_another_form_of_the_optimizers_state(train: Train) -> None:
    assert train()[0] == 0
    code, printed = train("trainer.steps=3", "optimizer.distributed=true", "model.vision.dtype=bf16")
    assert code == 2, printed
    assert "optimizer.distributed: true, there false" in printed
    assert "model.vision.dtype (null: trainer.precision): bf16, there fp32" in printed
    assert "model.llm.dtype" not in printed
