"""Verbs, help, exit codes; and that looking around imports nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loongforge.cli.main import VERBS, main
from loongforge.components.registry import names

Capture = pytest.CaptureFixture[str]

_HEAVY = ("torch", "transformers", "megatron", "numpy", "rich", "PIL", "sklearn")
_SUBVERBS = ["recipes list", "recipes show", "recipes copy", "components list", "config show"]
_SUBVERBS += ["data build", "data check", "data preview"]


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "train --help",
        "recipes list",
        "recipes show llava_sft",
        "components list --json",
        "config show +recipe=llava_sft",
        "plan +recipe=llava_sft --world 1 --device h100",
        "train +recipe=llava_sft --cfg job",
        "backends --help",
    ],
)
def test_looking_around_imports_nothing_heavy(command: str) -> None:
    script = (
        "import sys; from loongforge.cli.main import main; code = main(sys.argv[1:]); "
        f"print([m for m in {_HEAVY} if m in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    run = subprocess.run([sys.executable, "-c", script, *command.split()], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stderr.strip() == "[]"
    assert run.stdout


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "loongforge", "recipes", "lsit"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert "Did you mean 'list'?" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("verb", [*VERBS, *_SUBVERBS])
def test_every_verb_has_help_with_examples(verb: str, capsys: Capture) -> None:
    assert main([*verb.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"loongforge {verb}" in text
    assert "examples" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "'trian' is not a verb. Did you mean 'train'?"),
        (["recipes"], "Allowed: list, show, copy"),
        (["recipes", "show", "llava_stf"], "Did you mean 'llava_sft'?"),
        (["train", "+recipe=llava_sft", "--multirum"], "unknown option '--multirum'. Did you mean '--multirun'?"),
        (["train", "+recipe=llava_sft", "--cfg", "jobb"], "--cfg: invalid choice"),
        (["train", "+recipe=llava_sft", "trainer.stps=1"], "Did you mean 'trainer.steps'?"),
        (["train", "+recipe=llava_sft", "launcher.nproc=3", "model.llm.parallel.tp=2"], "nearest: launcher.nproc=2"),
        (["train", "+recipe=llava_sft", "launcher.nproc=3", "model.llm.parallel.tp=3"], "num_heads=4 cannot be"),
        (["train", "+recipe=llava_sft", "backend=cup"], "Did you mean 'cpu'?"),
        (["train"], "no recipe given"),
        (["plan", "+recipe=llava_sft", "model.vision.patch_size=15"], "not a multiple of patch_size"),
        (["data", "build", "digit_vqa"], "Did you mean 'digits_vqa'?"),
        (["eval", "--checkpoint", "gone"], "gone: no such folder"),
        (["eval"], "--checkpoint"),
        (["config", "show", "+recipe=llava_sft", "-p", "trainr"], "Did you mean 'trainer'?"),
        (["train", "+recipe=mine", "-cd", "gone"], "gone: no such folder"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_message_and_exit_2(
    argv: list[str], message: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_debug_shows_the_traceback(capsys: Capture) -> None:
    assert main(["--debug", "train", "+recipe=gone"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main(["train", "+recipe=gone", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").is_dir(), reason="no folder that root cannot write to")
def test_unwritable_run_dir(capsys: Capture) -> None:
    assert main(["train", "+recipe=llava_sft", "run.dir=/proc/nowhere"]) == 2
    assert "run.dir=/proc/nowhere cannot be written" in capsys.readouterr().err


def test_run_dir_is_a_file(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert main(["train", "+recipe=llava_sft", f"run.dir={tmp_path}/file"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_components_and_backends_for_machines(capsys: Capture) -> None:
    assert main(["components", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["vision"]["types"] == names("vision")
    assert {"clip_vit", "internvit", "qwen2_5_vit", "siglip_vit"} <= set(found["vision"]["types"])
    assert "qwen3_8b" in found["llm"]["configs"]
    assert main(["backends", "--json"]) == 0
    assert any(backend["name"] == "cpu" and backend["available"] for backend in json.loads(capsys.readouterr().out))


def test_plan_counts_parameters(capsys: Capture) -> None:
    argv = ["plan", "+recipe=llava_1_5_7b", "data.train=x", "data.tokenizer=y", "launcher.nproc=8", "--json"]
    assert main([*argv, "model.llm.parallel.tp=4"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["layout"] == {"tp": 4, "dp": 2, "pp": 1, "cp": 1}
    assert report["components"]["llm"]["params"] == 6_738_415_616
    assert report["components"]["projector"]["params"] == 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert report["components"]["vision"]["trainable_params"] == 0
    assert report["trainable_params"] == report["params"] - report["components"]["vision"]["params"]


def test_recipes_are_copied_to_be_edited(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "llava_sft", "mine.yaml"]) == 0
    assert "+recipe=./mine.yaml" in capsys.readouterr().out
    assert main(["recipes", "copy", "llava_sft", "mine.yaml"]) == 2
    assert main(["recipes", "copy", "llava_sft", "mine.yaml", "--force"]) == 0
    assert main(["plan", "+recipe=./mine.yaml"]) == 0


def test_recipe_headers_say_what_they_train(capsys: Capture) -> None:
    assert main(["recipes", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 4
    assert all(len(line.split()) > 5 for line in lines)
