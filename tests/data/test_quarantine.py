from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from loongforge.config.errors import UserError
from loongforge.data.batch import BadSample
from loongforge.data.quarantine import QuarantineLedger, check_ratio


def _bad(number: int, step: int = 0) -> BadSample:
    return BadSample("src", "a.tar", f"k{number}", f"id{number}", "broken", step, "k9 of a.tar")


def _keys(path: Path) -> list[str]:
    return [json.loads(line)["key"] for line in path.read_text().splitlines()]


def test_one_line_per_distinct_sample_over_epochs_and_resume(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    ledger = QuarantineLedger(path, max_bad=10)
    assert not path.exists()
    assert ledger.record([_bad(1), _bad(1), _bad(2)]) == [_bad(1), _bad(2)]
    assert ledger.record([_bad(2, step=50)]) == []
    resumed = QuarantineLedger(path, max_bad=10)
    assert len(resumed) == 2
    resumed.record([_bad(1, step=9), _bad(3, step=9)])
    assert _keys(path) == ["k1", "k2", "k3"]
    assert json.loads(path.read_text().splitlines()[0]) == {
        "source": "src",
        "shard": "a.tar",
        "key": "k1",
        "id": "id1",
        "reason": "broken",
        "step": 0,
        "replaced_by": "k9 of a.tar",
    }


def test_line_torn_by_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    QuarantineLedger(path, max_bad=10).record([_bad(1), _bad(2)])
    path.write_text(path.read_text()[:-20])
    resumed = QuarantineLedger(path, max_bad=10)
    assert len(resumed) == 1
    resumed.record([_bad(2)])
    resumed.record([_bad(3)])
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()[2:]] == ["k2", "k3"]
    assert len(QuarantineLedger(path, max_bad=10)) == 3


def test_dropped_samples_are_noted_and_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    ledger = QuarantineLedger(path, max_bad=1)
    dropped = [dataclasses.replace(_bad(number), dropped=True) for number in range(5)]
    assert ledger.record([*dropped, _bad(7)]) == [*dropped, _bad(7)]
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry.get("dropped") for entry in entries] == [True] * 5 + [None]
    resumed = QuarantineLedger(path, max_bad=1)
    assert len(resumed) == 6
    with pytest.raises(UserError, match="2 bad samples"):
        resumed.record([_bad(8)])


def test_ratio() -> None:
    check_ratio(400, 599, 0.0, _bad(1))  # too few to say
    check_ratio(100, 900, 0.1, _bad(1))
    with pytest.raises(
        UserError, match=r"101 of the first 1001 samples \(10\.1%\).*data\.max_bad_ratio=0\.1.*k1 of a\.tar"
    ):
        check_ratio(101, 900, 0.1, _bad(1))
    check_ratio(10**6, 1, 1.0, _bad(1))


def test_limit(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    ledger = QuarantineLedger(path, max_bad=2)
    ledger.record([_bad(1), _bad(2)])
    with pytest.raises(UserError, match=r"3 bad samples, more than data\.max_bad=2 .*k3 of a\.tar: broken"):
        ledger.record([_bad(3)])
    assert _keys(path) == ["k1", "k2", "k3"]
