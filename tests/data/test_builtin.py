from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loongforge.config.errors import UserError
from loongforge.data import builtin
from loongforge.data.builtin import digits_vqa
from loongforge.data.builtin.publish import publish
from loongforge.data.sources import open_source


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    values, glyphs = digits_vqa.load_digits()
    reference = load_digits()
    assert values == reference.target.tolist()
    expected = np.round(reference.images * (255 / 16)).astype(np.uint8)[5]
    assert (glyphs[5] == np.asarray(Image.fromarray(expected).resize((16, 16), Image.Resampling.BILINEAR))).all()


def _records(digits: Path, split: str) -> list[tuple[dict, np.ndarray]]:
    source = open_source(f"{digits}/{split}-*.tar", "data.train")
    raws = [source.load(i) for i in range(len(source))]
    return [({"id": r.id, "messages": r.messages}, np.asarray(Image.open(io.BytesIO(r.images[0]())))) for r in raws]


def test_digits_vqa_counts_and_tasks(digits: Path) -> None:
    for split, number in (("train", 8000), ("val", 1500)):
        records = _records(digits, split)
        assert len(records) == number
        assert all(canvas.shape == (32, 32) and canvas.dtype == np.uint8 for _, canvas in records)
        assert len({record["id"] for record, _ in records}) == number
    answers = Counter(record["messages"][1]["content"] for record, _ in records)
    assert {"left", "right", "equal"} < set(answers)


def test_no_validation_digit_was_seen_in_training(digits: Path) -> None:
    def cells(split: str) -> set[bytes]:
        corners = [(top, left) for top in (0, 16) for left in (0, 16)]
        parts = (c[t : t + 16, x : x + 16] for _, c in _records(digits, split) for t, x in corners)
        return {part.tobytes() for part in parts if part.any()}

    train, val = cells("train"), cells("val")
    # a handful of the 1797 scans are pixel for pixel the same
    assert len(train & val) <= 3
    assert 1400 < len(train) <= 1497
    assert 280 < len(val) <= 300


def test_answers_follow_from_the_canvas() -> None:
    import random

    for i in range(300):
        rng = random.Random(i)
        canvas, _, answer = digits_vqa._TASKS["sum"](rng)
        assert int(answer) == sum(canvas.values())
        canvas, _, answer = digits_vqa._TASKS["read"](rng)
        assert answer == "".join(str(canvas[cell]) for cell in sorted(canvas))
        canvas, _, answer = digits_vqa._TASKS["compare"](rng)
        left, right = (canvas[cell] for cell in sorted(canvas))
        assert answer == ("equal" if left == right else "left" if left > right else "right")
        assert sorted(canvas)[1] == sorted(canvas)[0] + 1
        assert sorted(canvas)[0] % 2 == 0
        canvas, _, answer = digits_vqa._TASKS["count"](rng)
        assert int(answer) == len(canvas)
        canvas, subject, answer = digits_vqa._TASKS["corner"](rng)
        assert answer == str(canvas[digits_vqa._CELL_NAMES.index(subject)])


def test_build_is_deterministic_and_reused(digits: Path, tmp_path: Path) -> None:
    again = builtin.build("digits_vqa", tmp_path / "again")
    for file in [*digits.glob("*.tar"), *(digits / "tokenizer").iterdir()]:
        assert file.read_bytes() == (again / file.relative_to(digits)).read_bytes(), file
    before = (again / "manifest.json").stat().st_mtime_ns
    assert builtin.build("digits_vqa", again) == again
    assert (again / "manifest.json").stat().st_mtime_ns == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [".again.lock", "again"]


def test_tokenizer_does_not_depend_on_the_python_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython's help texts, which the merges were learned from, change with every release."""
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    folder = builtin.build("digits_vqa", tmp_path / "d")
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    assert len(model["merges"]) == 252
    assert len(model["vocab"]) == 512


def test_build_needs_no_torch_nor_transformers(tmp_path: Path) -> None:
    code = (
        "import sys; from loongforge.data import builtin; builtin.build('digits_vqa', sys.argv[1]);"
        "print([m for m in ('torch', 'transformers', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "d"], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "[]", done.stderr


def _build(folder: str) -> str:
    return str(builtin.build("pydoc_text", folder))


def test_four_processes_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        results = pool.map_async(_build, [str(tmp_path / "p")] * 4).get(timeout=60)
    assert set(results) == {str(tmp_path / "p")}
    assert sorted(p.name for p in tmp_path.iterdir()) == [".p.lock", "p"]


def test_only_one_of_many_builds(tmp_path: Path) -> None:
    calls = []

    def write(folder: Path) -> None:
        calls.append(folder)
        (folder / "x").write_text("x")

    for _ in range(3):
        publish("n", 1, tmp_path / "n", write)
    assert len(calls) == 1


def test_killed_build_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    code = "import sys; from loongforge.data import builtin; builtin.build('digits_vqa', sys.argv[1])"
    for wait in (0.0, 0.5):
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "d"])
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".d.tmp-*/train-*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "d").exists()
        assert list(tmp_path.glob(".d.tmp-*"))
    folder = builtin.build("digits_vqa", tmp_path / "d")
    assert json.loads((folder / "manifest.json").read_text())["name"] == "digits_vqa"
    assert not list(tmp_path.glob(".d.tmp-*"))


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "x").write_text("x")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        publish("n", 1, tmp_path / "n", write)
    assert [p.name for p in tmp_path.iterdir()] == [".n.lock"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "train.jsonl").write_text("torn"), "train.jsonl has 4 bytes instead of"),
        (lambda d: (d / "val.jsonl").unlink(), "val.jsonl is missing"),
        (lambda d: (d / "manifest.json").unlink(), "no readable manifest.json"),
        (lambda d: (d / "manifest.json").write_text('{"name": "pydoc_text", "version": 0, "files": {}}'), "version 0"),
    ],
)
def test_damaged_folder_is_named(tmp_path: Path, damage: object, message: str) -> None:
    folder = builtin.build("pydoc_text", tmp_path / "p")
    damage(folder)  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as caught:
        builtin.build("pydoc_text", folder)
    assert f"remove {folder}" in str(caught.value)


def test_foreign_folder_unknown_name_and_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not data set 'pydoc_text'"):
        builtin.build("pydoc_text", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()
    with pytest.raises(UserError, match="Did you mean 'digits_vqa'"):
        builtin.build("digit_vqa", tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write data set 'pydoc_text'"):
        builtin.build("pydoc_text", tmp_path / "file" / "p")


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    assert (builtin.build("pydoc_text", tmp_path) / "train.jsonl").exists()


def test_pydoc_text_splits_by_topic(pydoc: Path) -> None:
    topics = {}
    for split in ("train", "val"):
        records = [json.loads(line) for line in (pydoc / f"{split}.jsonl").read_text().splitlines()]
        assert all(record["text"].strip() and len(record["text"]) <= 400 for record in records)
        topics[split] = {record["id"].rpartition("_")[0] for record in records}
    assert topics["train"].isdisjoint(topics["val"])
    assert len(topics["val"]) >= 5
