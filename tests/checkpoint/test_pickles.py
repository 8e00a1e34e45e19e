"""Checkpoints are loaded without unpickling: a planted payload is refused, named, and never runs."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from loongforge.cli.main import main
from tests.hf.folders import make_folder
from tests.hf.test_export import train, write_data
from tests.repo.files import REPO


class Payload:
    """Touches a file while it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step."""
    folder = tmp_path_factory.mktemp("run")
    make_folder(folder / "given", "llama")
    from loongforge.cli.hf_recipe import recipe_tree
    from loongforge.config.saved import save_config

    save_config(recipe_tree(folder / "given"), folder / "mine.yaml")
    train(folder / "mine.yaml", write_data(folder, False), folder / "run", "trainer.steps=1")
    return folder


def _describe_again(checkpoint: Path) -> None:
    """A manifest that fits the files, as whoever plants a payload would write it."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        content = (checkpoint / name).read_bytes()
        entry["bytes"] = len(content)
        entry["sha256"] = hashlib.sha256(content).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def _zip_of(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def _first_entry(checkpoint: Path, kind: str, payload: Payload) -> str:
    """Replaces what the table says of one tensor or object by a payload in a file of the checkpoint."""
    table = json.loads((checkpoint / "tensors.json").read_text())
    place = next(iter(table["tensors"].values()))["chunks"][0] if kind == "tensors" else None
    place = place or next(iter(table["objects"].values()))
    content = _zip_of(payload)
    file = checkpoint / place["file"]
    place["start"], place["length"] = file.stat().st_size, len(content)
    with file.open("ab") as stream:
        stream.write(content)
    (checkpoint / "tensors.json").write_text(json.dumps(table))
    return place["file"]


def _plant(checkpoint: Path, where: str, payload: Payload) -> str:
    """Puts a payload somewhere, and returns what the message has to name."""
    if where in ("tensors", "objects"):
        file = _first_entry(checkpoint, where, payload)
        return file if where == "tensors" else "_extra_state"
    content = _zip_of({"optimizer": payload}) if where == "common.pt" else pickle.dumps(payload)
    (checkpoint / where).write_bytes(content)
    return where


@pytest.mark.parametrize("verb", ["eval", "export", "resume", "init_from"])
@pytest.mark.parametrize("where", [".metadata", "common.pt", "tensors", "objects"])
def test_planted_payload_is_refused_and_named(where: str, verb: str, run: Path, tmp_path: Path, capsys: Any) -> None:
    if verb == "export" and where in ("common.pt", "objects"):
        pytest.skip("an export does not open these")
    shutil.copytree(run / "run", tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000001"
    name = _plant(checkpoint, where, Payload(tmp_path / "touched"))
    _describe_again(checkpoint)
    commands = {
        "eval": ["eval", "--checkpoint", str(checkpoint), "--data", str(run / "data.jsonl")],
        "export": ["export", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")],
        "resume": [*_train(run, tmp_path / "run"), "trainer.steps=2"],
        "init_from": [*_train(run, tmp_path / "new"), f"model.init_from={checkpoint}"],
    }
    capsys.readouterr()
    assert main(commands[verb]) == 2
    assert name in capsys.readouterr().err
    assert not (tmp_path / "touched").exists()


def _train(run: Path, folder: Path) -> list[str]:
    data = f"data.train={run / 'data.jsonl'}"
    quiet = ["trainer.precision=fp32", "trainer.global_batch_size=3", "logging.tensorboard=false"]
    return ["train", f"recipe={run / 'mine.yaml'}", data, f"run.dir={folder}", "launcher.nproc=1", *quiet]


def test_the_payload_works(tmp_path: Path) -> None:
    """Otherwise the tests above would show nothing."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "touched")))
    assert (tmp_path / "touched").exists()


def _unpickles(call: ast.Call) -> bool:
    """Whether a call may run what a file says."""
    function = ast.unparse(call.func)
    if function == "torch.load":
        return not any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in call.keywords)
    if function == "np.load":
        return any(word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in call.keywords)
    return function in ("pickle.load", "pickle.loads", "pickle.Unpickler")


OWN_PROCESSES = {"loongforge/training/verify/run.py"}
"""What its own processes hand it, in a folder of its own."""


def test_no_code_unpickles() -> None:
    found = [
        str(file.relative_to(REPO))
        for folder in ("loongforge", "backends")
        for file in sorted((REPO / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and _unpickles(node)
    ]
    assert set(found) <= OWN_PROCESSES


@pytest.mark.parametrize("name", ["metadata.json", "rng_0.json"])
def test_a_table_that_is_a_pickle_is_named(name: str, run: Path, tmp_path: Path, capsys: Any) -> None:
    """Where a run goes on."""
    shutil.copytree(run / "run", tmp_path / "run")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    (checkpoint / name).write_bytes(_zip_of(Payload(tmp_path / "ran")))
    _describe_again(checkpoint)
    assert main([*_train(run, tmp_path / "run"), "trainer.steps=2"]) == 2
    assert f"cannot read {checkpoint / name}" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
