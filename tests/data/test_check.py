"""`data check` finds every planted fault, names it, and finds nothing where there is nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loongforge.config.errors import UserError
from loongforge.config.schema import SourceConfig
from loongforge.data.check import kinds
from loongforge.data.check.outlook import BatchShape, histogram, packing, padded_share
from loongforge.data.check.report import Outlook, Pace, as_json, as_text
from loongforge.data.check.run import Checked, Spec, check, open_sets
from loongforge.data.loader import TrainLoader
from loongforge.data.processing import SampleProcessor
from loongforge.data.sources.shard_writer import write_shards
from loongforge.data.sources.tar_index import load_index
from tests.data.conftest import add_members, config, png, shard_sample, write_jsonl, write_tar
from tests.data.planted import ERRORS, WARNINGS, DataSet, talk


def _check(processor: SampleProcessor, train: Spec, held_out: Spec | None = None, **options: Any) -> Checked:
    specs = {"train": train} if held_out is None else {"train": train, "eval": held_out}
    sets = open_sets(specs, samples=options.pop("samples", None))
    return check(sets, processor, **{"workers": 1, "examples": 3, **options})


def _check_folder(processor: SampleProcessor, folder: Path, **options: Any) -> Checked:
    return _check(processor, str(folder / "train.jsonl"), str(folder / "eval.jsonl"), **options)


def _counts(checked: Checked) -> dict[str, int]:
    return {kind: problem.count for kind, problem in checked.problems.items()}


def test_clean(processor: SampleProcessor, tmp_path: Path) -> None:
    checked = _check_folder(processor, DataSet.clean().write(tmp_path / "d"))
    assert _counts(checked) == {}
    assert [(one.name, one.total, len(one.lengths)) for one in checked.sets] == [("train", 12, 12), ("eval", 6, 6)]


@pytest.mark.parametrize("fault", [*ERRORS, *WARNINGS])
def test_each_fault_alone(processor: SampleProcessor, tmp_path: Path, fault: str) -> None:
    kind, plant = {**ERRORS, **WARNINGS}[fault]
    data = DataSet.clean()
    plant(data)
    checked = _check_folder(processor, data.write(tmp_path / "d"))
    assert _counts(checked) == {kind: 1}
    assert (kind in kinds.ERRORS) == (fault in ERRORS)
    name, found = checked.problems[kind].examples[0]
    planted_in = "eval" if fault in ("id of a training sample", "content of a training sample") else "train"
    line = f"line {len(data.train if planted_in == 'train' else data.held_out)}"
    assert (name, found.location.key) == (planted_in, line)
    assert found.location.shard == str(tmp_path / "d" / f"{planted_in}.jsonl")
    assert found.reason


@pytest.mark.parametrize("workers", [1, 3])
def test_all_faults_at_once(processor: SampleProcessor, tmp_path: Path, workers: int) -> None:
    data, expected = DataSet.clean(80), dict[str, int]()
    for kind, plant in [*ERRORS.values(), *WARNINGS.values()]:
        plant(data)
        expected[kind] = expected.get(kind, 0) + 1
    expected["duplicate_id"] += 2  # the raw texts all have the id "t", and those of good JSON are compared
    checked = _check_folder(processor, data.write(tmp_path / "d"), workers=workers)
    assert _counts(checked) == expected
    assert len(expected) >= 20


@pytest.mark.parametrize("table", [ERRORS, WARNINGS])
def test_every_kind_of_the_tables_is_described(table: dict[str, Any]) -> None:
    known = kinds.ERRORS if table is ERRORS else kinds.WARNINGS
    assert {kind for kind, _ in table.values()} <= set(known)


def test_every_kind_that_is_raised_is_described() -> None:
    folder = Path(kinds.__file__).parents[1]
    raised = {kind for file in folder.rglob("*.py") for kind in re.findall(r'problem="(\w+)"', file.read_text())}
    assert len(raised) > 15
    assert raised <= set(kinds.ERRORS)


def test_shards(processor: SampleProcessor, tmp_path: Path) -> None:
    good = [shard_sample(i) for i in range(6)]
    bad = [
        ("a", {"json": b"{}", "0.png": png()}),
        ("b", {"0.png": png()}),
        ("c", {**shard_sample(30)[1], "2.png": png()}),
        ("d", {"txt": b"caf\xe9"}),
        ("e", {"txt": b"a text beside an image", "png": png()}),
        ("f", shard_sample(2)[1]),
    ]
    write_shards(tmp_path, "a", [*good, *bad], 20)
    expected = {"no_messages": 1, "shard_members": 2, "not_utf8": 1, "text_with_images": 1, "duplicate_id": 1}
    checked = _check(processor, str(tmp_path / "*.tar"))
    assert _counts(checked) == expected
    assert "s0002" in checked.problems["duplicate_id"].examples[0][1].reason


def test_key_twice_in_a_shard(processor: SampleProcessor, tmp_path: Path) -> None:
    def members(key: str, number: int) -> list[tuple[str, bytes]]:
        record = json.dumps({"messages": talk(answer=str(number))}).encode()
        return [(f"{key}.json", record), (f"{key}.0.png", png(number))]

    add_members(tmp_path / "a.tar", [*members("x", 1), *members("x", 2), *members("y", 3)])
    assert _counts(_check(processor, str(tmp_path / "a.tar"))) == {"shard_members": 1}
    add_members(tmp_path / "b.tar", [*members("x", 1), *members("y", 3), *members("x", 2)])
    assert _counts(_check(processor, str(tmp_path / "b.tar"))) == {"duplicate_id": 1}


def test_places_are_no_ids(processor: SampleProcessor, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_jsonl(tmp_path / name, [{"messages": talk("What?", f"{name} {i}"), "id": None} for i in range(3)])
    both = [SourceConfig(path=str(tmp_path / name / "a.jsonl")) for name in ("one", "two")]
    assert _counts(_check(processor, both, str(tmp_path / "two"))) == {"leaked_id": 3, "leaked_content": 3}


def test_truncated_shard_beside_good_ones(processor: SampleProcessor, tmp_path: Path) -> None:
    first, second, _ = write_tar(tmp_path / "d", 25)
    with open(second, "r+b") as file:
        file.truncate(2000)
    checked = _check(processor, str(tmp_path / "d" / "*.tar"))
    assert _counts(checked) == {"unreadable_source": 1}
    assert checked.problems["unreadable_source"].examples[0][1].location.shard == str(second)
    assert checked.sets[0].total == 15
    (tmp_path / "d" / "list.json").write_text('[{"id": 1},')
    both = [SourceConfig(path=str(tmp_path / "d" / "list.json")), SourceConfig(path=str(first))]
    checked = _check(processor, both)
    assert _counts(checked) == {"unreadable_source": 1}
    assert "entry 1 of the list" in checked.problems["unreadable_source"].examples[0][1].reason


@pytest.mark.parametrize("cut", ["in a member", "in a header", "before the end mark", "overwritten"])
def test_what_is_before_a_cut_is_checked(processor: SampleProcessor, tmp_path: Path, cut: str) -> None:
    """The samples before it are read, problems among them are found, and the report says where it is."""
    samples = [shard_sample(i) for i in range(10)]
    samples[3] = shard_sample(3, **{"0.png": b"none"})
    (tar,) = write_shards(tmp_path, "cut", samples, 10)
    index = load_index(tar)
    (_, offset, size, _), *_ = index.members(7)  # the first member of the eighth sample
    tar.with_name(tar.name + ".index.npz").unlink()
    content, header = tar.read_bytes(), offset - 512
    if cut == "overwritten":
        tar.write_bytes(content[:header] + b"x" * 512 + content[header + 512 :])
    else:
        tar.write_bytes(content[: {"in a member": offset + size - 1, "in a header": header + 80}.get(cut, header)])
    checked = _check(processor, str(tar))
    assert _counts(checked) == {"unreadable_source": 1, "undecodable_image": 1}
    readable = 7 if cut == "in a member" else 6  # the last one may lack what came behind it
    assert checked.sets[0].total == readable
    reason = checked.problems["unreadable_source"].examples[0][1].reason
    assert f"the {readable} samples before 's000{readable}' can be read" in reason
    assert ("is damaged after byte" if cut == "overwritten" else "is truncated: it stops after") in reason
    with pytest.raises(UserError, match=r"can be read; copy or build it again"):
        load_index(tar)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing-*.tar", "no file matches"),
        ([], "empty list"),
        ([SourceConfig(path="x", weight=-1)], "weight=-1"),
        ("{a", "braces do not match"),
    ],
)
def test_wrong_arguments(processor: SampleProcessor, spec: Spec, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _check(processor, spec)


def _with_template(processor: SampleProcessor, template: str, **changes: Any) -> SampleProcessor:
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.chat_template = template
    options = {"max_length": 64, "num_image_tokens": 4, "image_processor": processor.image_processor}
    return SampleProcessor(tokenizer, **{**options, **changes})


GOOD = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}A: {% generation %}{{ m['content'] + eos_token }}"
    "{% endgeneration %}{% else %}U: {{ m['content'] }} {% endif %}{% endfor %}"
)
# Of 12 samples, 4 have a system message and two turns; and 2 of 6.
TEMPLATES = {
    "fine": (GOOD, {}),
    "no generation block": (
        GOOD.replace("{% generation %}", "").replace("{% endgeneration %}", ""),
        {"recipe": 18},
    ),
    "does not parse": (GOOD[:-12], {"template_refuses": 18}),
    "leaves out images": (
        GOOD.replace("U: {{ m['content'] }}", "U: {{ m['content'] | replace('<image>', '') }}"),
        None,
    ),
    "cuts questions": (
        GOOD.replace("U: {{ m['content'] }}", "U: {{ m['content'][:15] }}"),
        {"template_drops_text": 18},
    ),
    "cuts answers": (
        GOOD.replace("m['content'] + eos", "m['content'][:2] + eos"),
        {"answer_not_learned": 6, "earlier_answer_not_learned": 6},
    ),
    "learns the last answer only": (
        GOOD.replace("m['role'] == 'assistant'", "m['role'] == 'assistant' and loop.last"),
        {"earlier_answer_not_learned": 6},
    ),
    "learns everything": (
        "{% for m in messages %}{% generation %}{{ m['content'] }} {% endgeneration %}{% endfor %}",
        {"question_learned": 18},
    ),
    "leaves out the system message": (
        GOOD.replace("{% else %}", "{% elif m['role'] == 'user' %}"),
        {"template_drops_system": 6},
    ),
    "refuses": (GOOD + "{{ raise_exception('no') if messages | length > 2 }}", {"template_refuses": 6}),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates(processor: SampleProcessor, tmp_path: Path, name: str) -> None:
    template, expected = TEMPLATES[name]
    checked = _check_folder(_with_template(processor, template), DataSet.clean().write(tmp_path / "d"))
    counts = _counts(checked)
    if expected is None:
        assert counts.get("recipe")
    else:
        assert {kind: counts.get(kind) for kind in expected} == expected, counts
        assert expected or not counts


def test_too_long_policies(processor: SampleProcessor, tmp_path: Path) -> None:
    data = DataSet.clean()
    data.add(images=[], messages=talk("Which?", "seven " * 200))
    folder = data.write(tmp_path / "d")
    for policy, kind, good in (
        ("fail", "too_long", 12),
        ("drop", "dropped_too_long", 12),
        ("truncate_text", "cut_text", 13),
    ):
        other = _with_template(processor, processor.tokenizer.get_chat_template(), too_long=policy)
        checked = _check_folder(other, folder)
        assert _counts(checked) == {kind: 1}
        assert len(checked.sets[0].lengths) == good


def test_an_unexpected_error_is_a_finding(
    processor: SampleProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = DataSet.clean().write(tmp_path / "d")
    monkeypatch.setattr(SampleProcessor, "__call__", lambda *_: 1 // 0)
    checked = _check_folder(processor, folder)
    assert _counts(checked) == {"crash": 18}
    assert "ZeroDivisionError" in checked.problems["crash"].examples[0][1].reason


def test_samples_are_spread_and_examples_limited(processor: SampleProcessor, tmp_path: Path) -> None:
    data = DataSet.clean(40)
    for _ in range(10):
        data.add(images=[])
    folder = data.write(tmp_path / "d")
    checked = _check_folder(processor, folder, samples=10, examples=1)
    assert checked.sets[0].places[:, 1].tolist() == list(range(0, 50, 5))
    assert _counts(checked) == {"image_count": 2}
    assert [found.location.key for _, found in checked.problems["image_count"].examples] == ["line 41"]


def test_workers_find_the_same(processor: SampleProcessor, tmp_path: Path) -> None:
    data = DataSet.clean(200)
    for i in range(100):
        data.add(**({} if i % 3 else {"images": []}))
    folder = data.write(tmp_path / "d")
    seen: list[int] = []
    alone = _check_folder(processor, folder)

    def watch(total: int) -> AbstractContextManager[Any]:
        seen.append(-total)
        return nullcontext(seen.append)

    several = _check_folder(processor, folder, workers=3, watch=watch)
    assert sum(seen) == 0 and len(seen) > 3
    assert several.problems == alone.problems
    for one, other in zip(alone.sets, several.sets, strict=True):
        for name in ("tokens", "images", "names", "contents"):
            assert (getattr(one.facts, name) == getattr(other.facts, name)).all()


def test_report(processor: SampleProcessor, tmp_path: Path) -> None:
    data = DataSet.clean()
    for _ in range(4):
        data.add(id="evil\x1b]0;title\u202e", images=[])
    WARNINGS["very wide image"][1](data)
    checked = _check_folder(processor, data.write(tmp_path / "d"))
    report = json.loads(json.dumps(as_json(checked, Outlook(0.25, packing(np.array([3, 5, 9]), 8)), Pace(2.0, 3))))
    assert not report["ok"]
    kinds_found = [(one["problem"], one["count"], len(one["examples"])) for one in report["problems"]]
    assert kinds_found == [("image_count", 4, 3), ("duplicate_id", 3, 3)]
    assert [one["problem"] for one in report["warnings"]] == ["aspect_ratio"]
    assert report["sets"]["train"] | {"tokens": 0, "lengths": 0} == {
        "samples": 17, "checked": 17, "good": 13, "tokens": 0, "lengths": 0,
        "images_per_sample": {"0": 4, "1": 5, "2": 4},
    }  # fmt: skip
    assert sum(bar["samples"] for bar in report["sets"]["train"]["lengths"]) == 13
    assert report["packing"] == {"budget": 8, "packs": 1, "fill": 1.0, "too_long": 1}
    text = as_text(report)
    assert "\x1b" not in text and "\u202e" not in text and r"evil\x1b]0;title\u202e" in text
    for words in ("image_count", ": 4", "... and 1 more", "line 13 of", "padding: 25.0%", "1 packs of at most 8"):
        assert words in text


@pytest.mark.parametrize(("multiple", "dp"), [(1, 1), (4, 2)])
def test_predicted_padding_is_that_of_training(
    processor: SampleProcessor, tmp_path: Path, multiple: int, dp: int
) -> None:
    records = [{"id": i, "messages": talk("What?", "word " * (1 + i * i % 13))} for i in range(30)]
    paths = [write_jsonl(tmp_path, records[:20], "a.jsonl"), write_jsonl(tmp_path, records[20:], "b.jsonl")]
    sources = [SourceConfig(path=str(paths[0]), weight=3), SourceConfig(path=str(paths[1]), weight=1)]
    train = _check(processor, sources).sets[0]
    shape = BatchShape(
        global_batch_size=8, micro_batch_size=2, dp=dp, multiple=multiple, steps=5, seed=11, shuffle=True
    )
    loader = TrainLoader(
        config(sources), processor, seed=11, global_batch_size=8, micro_batch_size=2,
        replicas=range(dp), dp_size=dp, pad_multiple=multiple,
    )  # fmt: skip
    batches = [b for step in range(5) for part in loader.load(step).micro_batches.values() for b in part]
    real = 1 - sum(int(b.lengths.sum()) for b in batches) / sum(b.tokens.numel() for b in batches)
    assert real > 0.05
    assert padded_share(train.lengths_by_source, train.opened.weights, shape) == pytest.approx(real, abs=1e-12)


def test_padding_of_nothing() -> None:
    shape = BatchShape(global_batch_size=2, micro_batch_size=1, dp=1, multiple=1, steps=3, seed=0, shuffle=False)
    assert padded_share([np.zeros(0, np.int64)], [1.0], shape) is None
    assert padded_share([np.zeros(0, np.int64), np.array([5])], [1.0, 2.0], shape) == 0
    two_rows = dataclasses.replace(shape, micro_batch_size=2)
    assert padded_share([np.array([1, 3])], [1.0], two_rows) == pytest.approx(1 - 4 / 6)


def test_packing_of_nothing() -> None:
    assert packing(np.zeros(0, np.int32), 8) is None
    assert packing(np.array([9]), 8) is None


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([], []),
        ([5, 5, 6], [(5, 5, 2), (6, 6, 1)]),
        ([0, 12], [(0, 1, 1), (2, 3, 0), (4, 5, 0), (6, 7, 0), (8, 9, 0), (10, 11, 0), (12, 13, 1)]),
        ([7, 700], [(0, 99, 1), *[(i * 100, i * 100 + 99, 0) for i in range(1, 7)], (700, 799, 1)]),
    ],
)
def test_histogram(values: list[int], bars: list[tuple[int, int, int]]) -> None:
    assert histogram(np.array(values, np.int64)) == bars
