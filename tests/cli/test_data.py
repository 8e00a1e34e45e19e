"""`data check` and `data preview` from the command line: exit codes, output, progress."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from loongforge.cli.main import main
from tests.data.planted import DataSet, talk

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from loongforge.data.builtin import build

    return build("digits_vqa", tmp_path_factory.mktemp("data") / "digits_vqa")


@pytest.fixture
def recipe(digits: Path) -> list[str]:
    return ["+recipe=llava_sft", f"data.dir={digits}"]


def _own(folder: Path, digits: Path) -> list[str]:
    """The overrides for data of `DataSet.write`."""
    files = [f"data.train={folder / 'train.jsonl'}", f"data.eval={folder / 'eval.jsonl'}"]
    return ["+recipe=llava_sft", "data=custom", *files, f"data.tokenizer={digits / 'tokenizer'}"]


def test_clean(recipe: list[str], capsys: Capture) -> None:
    assert main(["data", "check", *recipe, "--samples", "200", "--workers", "2"]) == 0
    printed = capsys.readouterr()
    for words in (
        "train: 200 of 8000 samples read, 200 can be trained on",
        "eval: 200 of 1500",
        "no problems",
        "padding",
    ):
        assert words in printed.out
    assert printed.err == ""


def test_problems(digits: Path, tmp_path: Path, capsys: Capture) -> None:
    data = DataSet.clean()
    for number in range(5):
        data.add(images=["gone.png"], id=f"id{number}")
    overrides = _own(data.write(tmp_path / "d"), digits)
    assert (
        main(["data", "check", *overrides, "--json", "--workers", "1", "--examples", "2", "--pack-tokens", "99"]) == 1
    )
    report = json.loads(capsys.readouterr().out)
    (problem,) = report["problems"]
    assert (problem["problem"], problem["count"], len(problem["examples"])) == ("missing_image", 5, 2)
    assert problem["examples"][0] == {
        "set": "train",
        "source": str(tmp_path / "d" / "train.jsonl"),
        "shard": str(tmp_path / "d" / "train.jsonl"),
        "key": "line 13",
        "id": "id0",
        "reason": f"cannot read image {tmp_path / 'd' / 'gone.png'}: No such file or directory",
    }
    assert report["packing"]["budget"] == 99
    assert 0 < report["padded_share"] < 1
    assert report["samples_per_minute"] > 0


def test_warnings_count_only_if_strict(digits: Path, tmp_path: Path, capsys: Capture) -> None:
    data = DataSet.clean()
    data.add(images=[], messages=talk("<img> What?"))
    overrides = _own(data.write(tmp_path / "d"), digits)
    assert main(["data", "check", *overrides]) == 0
    assert main(["data", "check", *overrides, "--strict"]) == 1
    assert "foreign_placeholder" in capsys.readouterr().out


def test_a_path(digits: Path, tmp_path: Path, capsys: Capture) -> None:
    data = DataSet.clean()
    data.add(images=[])
    folder = data.write(tmp_path / "d")
    given = [str(folder / "train.jsonl"), "--tokenizer", str(digits / "tokenizer")]
    assert main(["data", "check", *given, "--image-tokens", "4"]) == 1
    assert "image_count" in capsys.readouterr().out
    assert main(["data", "check", str(folder / "eval.jsonl"), *given[1:], "--max-length", "3"]) == 1
    assert "too_long" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["check"], "no recipe given"),
        (["check", "data.jsonl"], "one PATH with --tokenizer"),
        (["check", "+recipe=llava_sft", "--tokenizer", "x"], "one PATH with --tokenizer"),
        (["check", "gone.jsonl", "--tokenizer", "gone"], "no such folder"),
        (["check", "+recipe=llava_sft", "--samples", "0"], "--samples 0 must be at least 1"),
        (["check", "+recipe=llava_sft", "--worker", "2"], "Did you mean '--workers'?"),
        (["check", "+recipe=llava_sft", "data=custom", "data.train=no.jsonl", "data.tokenizer=no"], "no such folder"),
        (["preview", "+recipe=llava_sft", "--samples", "0"], "--samples 0 must be at least 1"),
        (["preview", "+recipe=llm_pretrain", "data.eval=null", "--set", "eval"], "data.eval"),
        (["chekc"], "Did you mean 'check'?"),
    ],
)
def test_wrong_arguments(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *argv]) == 2
    assert message in capsys.readouterr().err


def test_data_that_is_not_there(recipe: list[str], capsys: Capture) -> None:
    assert main(["data", "check", *recipe, "data.train=gone-*.tar"]) == 2
    assert "gone-*.tar" in capsys.readouterr().err


def test_progress_on_a_terminal(recipe: list[str]) -> None:
    """The bar goes to standard error; the report, which is piped, has none of it."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "loongforge", "data", "check", *recipe, "--samples", "100", "--json"]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        assert process.stdout is not None
        report = json.loads(process.stdout.read())
    assert process.returncode == 0
    assert report["ok"] and b"200/200" in shown


def test_no_torch(recipe: list[str]) -> None:
    script = (
        "import sys; from loongforge.cli.main import main; code = main(sys.argv[1:]); "
        "print([m for m in ('torch', 'megatron') if m in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    for verb in (["check", "--samples", "4"], ["preview"]):
        run = subprocess.run([sys.executable, "-c", script, "data", *verb, *recipe], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert run.stderr.strip() == "[]"


def test_preview(recipe: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert main(["data", "preview", *recipe, "--samples", "2", "--start", "7"]) == 0
    printed = capsys.readouterr().out
    assert "--- 7: " in printed and "--- 8: " in printed and "--- 9: " not in printed
    assert "<image> x4" in printed and "[</s>]" in printed and "user | " in printed
    file = tmp_path / "p.html"
    assert main(["data", "preview", *recipe, "--set", "eval", "--start", "1499", "--html", str(file)]) == 0
    assert "1 samples are in" in capsys.readouterr().out
    text = file.read_text()
    assert text.count("<article>") == 1 and "data:image/png;base64," in text and "of 256 samples" in text
    assert main(["data", "preview", *recipe, "--set", "eval", "--start", "1500"]) == 2
    assert main(["data", "preview", *recipe, "--html", str(tmp_path / "no" / "p.html")]) == 2


def test_preview_of_untrusted_data(digits: Path, tmp_path: Path, capsys: Capture) -> None:
    evil = "<script>alert(1)</script>"
    data = DataSet.clean(1)
    data.add(id=evil, images=[], messages=talk(evil, evil))
    data.add(images=[evil.replace("/", "")])
    overrides = _own(data.write(tmp_path / "d"), digits)
    file = tmp_path / "p.html"
    assert main(["data", "preview", *overrides, "--samples", "3", "--html", str(file)]) == 0
    text = file.read_text()
    assert "<script" not in text and "bad sample" in text and text.count("&lt;") > 3
    assert main(["data", "preview", *overrides, "--samples", "3"]) == 0
    assert "bad sample: cannot read image" in capsys.readouterr().out


def test_preview_of_packs(recipe: list[str], capsys: Capture) -> None:
    packed = ["packing.enabled=true", "trainer.micro_batch_tokens=256", "balance.mode=full", "launcher.nproc=2"]
    assert main(["data", "preview", *recipe, *packed, "--packs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    documents = [part for line in lines for part in line.split(" | ")[1:]]
    assert len(documents) == len(set(documents)) == 32
    for line in lines:
        head, *inside = line.split(" | ")
        used, budget = head.split(": ")[1].removesuffix(" tokens").split(" of ")
        assert int(used) == sum(int(document.split()[1]) for document in inside) <= int(budget) == 256
    assert main(["data", "preview", *recipe, "--packs"]) == 2
    assert "packing.enabled=true" in capsys.readouterr().err


def test_plan_says_what_balance_gains(recipe: list[str], tmp_path: Path, capsys: Capture) -> None:
    """By an index that fits; else the command that finds out. Both say the same."""
    argv = [*recipe, "launcher.nproc=4", f"data.index_dir={tmp_path / 'index'}"]
    gpu = ["--device", "h100"]  # there is nothing to measure
    assert main(["plan", *argv, *gpu, "--json"]) == 0
    command = json.loads(capsys.readouterr().out)["balance"]["command"]
    assert shlex.split(command)[:2] == ["loongforge", "plan"]
    assert main([*shlex.split(command)[1:], "--json"]) == 0
    modes = json.loads(capsys.readouterr().out)["modes"]
    assert main(["data", "index", *argv, "--workers", "2"]) == 0
    capsys.readouterr()
    assert main(["plan", *argv, *gpu, "--json"]) == 0
    speed = json.loads(capsys.readouterr().out)["balance"]["speed"]
    assert speed == pytest.approx({mode: 1 / one["step"] for mode, one in modes.items()})
    assert main(["plan", *argv, *gpu]) == 0
    assert f"full {speed['full']:.2f} times" in capsys.readouterr().out
    assert main(["plan", *argv, *gpu, "data.max_length=96", "--json"]) == 0
    assert "command" in json.loads(capsys.readouterr().out)["balance"]
    assert main(["plan", *argv, *gpu, "launcher.nproc=1", "--json"]) == 0
    assert "balance" not in json.loads(capsys.readouterr().out)


def test_plan_of_balance(recipe: list[str], capsys: Capture) -> None:
    argv = ["plan", *recipe, "launcher.nproc=4", "packing.enabled=true", "trainer.micro_batch_tokens=256", "--balance"]
    assert main([*argv, "--json"]) == 0
    modes = json.loads(capsys.readouterr().out)["modes"]
    assert modes["none"]["step"] == 1 >= modes["llm"]["step"] >= 0.99 * modes["full"]["step"]
    assert modes["llm"]["balance_llm"] <= modes["none"]["balance_llm"]
    assert main(argv) == 0
    assert "balance.mode" in capsys.readouterr().out


def test_pack(recipe: list[str], tmp_path: Path, capsys: Capture) -> None:
    """Says how full the rows are; does nothing the second time; never writes over anything else."""
    out = tmp_path / "packed"
    arguments = ["data", "pack", *recipe, "--samples", "100", "--tokens", "256", "--out", str(out), "--workers", "1"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for words in ("100 samples in 8 rows of at most 256 tokens", "% full", "padded micro-batches", f"data.train={out}"):
        assert words in printed
    written = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["samples"] == 100 and report["rows"] == 8 and report["left_out"] == 0
    assert 0.9 < report["fill"] <= 1 and 0 < report["padding_before"] < 0.5
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == written
    for change, words in (
        (["--tokens", "128"], "packs made with another budget"),
        (["--tokens", "1"], "--tokens 1 must be at least 2"),
        (["--out", str(tmp_path)], "holds no packs"),
    ):
        assert main([*arguments, *change]) == 2
        assert words in capsys.readouterr().err
