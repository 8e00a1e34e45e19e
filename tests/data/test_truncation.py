"""`data.too_long`: what stays of a sample that is too long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loongforge.config.errors import UserError
from loongforge.data.eval_loader import EvalLoader
from loongforge.data.loader import TrainLoader
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import RawSample, SampleError
from loongforge.data.truncation import kept_tokens
from tests.data.conftest import chat, config, png, write_jsonl
from tests.data.planted import talk


def _marks(text: str) -> tuple[np.ndarray, np.ndarray]:
    """`i` image, `a` answer, `q` anything else."""
    return np.array([c == "i" for c in text]), np.array([c == "a" for c in text])


@pytest.mark.parametrize(
    ("text", "room", "kept"),
    [
        ("qqaaaa", 4, "qqaa"),
        ("qiiqaaaqaa", 6, "qiiqaa"),
        ("qaaqiiqa", 5, "qaaii"),  # images stay, wherever they are
        ("qqqqqqqqaaaa", 6, "qqqaaa"),
        ("qqqqqqqqa", 4, "qqqa"),
        ("iiqqqqqqqaaaa", 4, "iiqa"),
        ("iiqqqqaaaa", 3, "iia"),
        ("aaaa", 2, "aa"),
    ],
)
def test_what_is_kept(text: str, room: int, kept: str) -> None:
    positions = kept_tokens(*_marks(text), room)
    assert positions is not None
    assert "".join(text[i] for i in positions) == kept


def test_the_middle_of_a_long_question_goes() -> None:
    positions = kept_tokens(*_marks("q" * 20 + "aa"), 8)
    assert positions is not None
    assert positions.tolist() == [0, 1, 2, 17, 18, 19, 20, 21]


@pytest.mark.parametrize(("text", "room"), [("iiiiqa", 4), ("qqqq", 3), ("qaaa", 1), ("iiqa", 1)])
def test_what_cannot_be_cut(text: str, room: int) -> None:
    assert kept_tokens(*_marks(text), room) is None


@given(st.text("iqa", min_size=2, max_size=60), st.integers(1, 60))
def test_images_and_labels_stay(text: str, room: int) -> None:
    is_image, learned = _marks(text)
    if room >= len(text):
        return
    positions = kept_tokens(is_image, learned, room)
    if positions is None:
        assert room - is_image.sum() <= 1 or not learned[1:].any()
        return
    assert len(positions) == room
    assert (np.diff(positions) > 0).all()
    assert is_image[positions].sum() == is_image.sum()
    assert learned[positions][1:].any()


def _cutting(processor: SampleProcessor, max_length: int, policy: Any = "truncate_text") -> SampleProcessor:
    return SampleProcessor(
        processor.tokenizer,
        max_length=max_length,
        num_image_tokens=4,
        image_processor=processor.image_processor,
        too_long=policy,
    )


def test_samples_are_cut_to_fit(processor: SampleProcessor) -> None:
    sample = RawSample(id="s", messages=chat("<image>\nWhich? <image>", "word " * 50), images=[png] * 2)
    done = _cutting(processor, 40)(sample)
    assert (len(done.ids), done.num_cut) == (40, len(_cutting(processor, 999)(sample).ids) - 40)
    assert (done.ids == processor.image_token_id).sum() == 8
    assert len(done.pixels) == 2
    assert done.learned.any()
    assert done.ids.tolist() == _cutting(processor, 40)(sample).ids.tolist()
    assert _cutting(processor, 999)(sample).num_cut == 0


def test_images_that_leave_no_room(processor: SampleProcessor) -> None:
    sample = RawSample(id="s", messages=chat("<image>" * 10), images=[png] * 10)
    with pytest.raises(SampleError, match="cannot be cut to 40 tokens: 10 images take 40"):
        _cutting(processor, 40)(sample)


def _data(folder: Path) -> str:
    records: list[Any] = [{"id": f"n{i}", "messages": talk("What?", str(i))} for i in range(12)]
    records[5]["messages"] = talk("What?", "word " * 100)
    records[7]["messages"] = talk("word " * 100)
    return str(write_jsonl(folder, records))


def test_policies_in_training(processor: SampleProcessor, tmp_path: Path) -> None:
    path = _data(tmp_path)

    def load(policy: str, **changes: Any) -> TrainLoader:
        data = config(path, too_long=policy, shuffle=False, **changes)
        return TrainLoader(data, _cutting(processor, 40, policy), seed=1, global_batch_size=12, micro_batch_size=12)

    with pytest.raises(UserError, match=r"line 6 of .*longer than 40 \(data\.max_length.*data\.too_long"):
        load("fail").load(0)
    dropped = load("drop").load(0)
    assert {(bad.id, bad.dropped) for bad in dropped.bad[0]} == {("n5", True), ("n7", True)}
    assert not {"n5", "n7"} & set(dropped.micro_batches[0][0].ids)
    assert {bad.dropped for bad in load("fail", bad_sample="skip").load(0).bad[0]} == {False}
    cut = load("truncate_text").load(0)
    assert cut.bad[0] == []
    assert cut.micro_batches[0][0].ids == [f"n{i}" for i in range(12)]


def test_policies_in_evaluation(processor: SampleProcessor, tmp_path: Path) -> None:
    def load(policy: str) -> EvalLoader:
        data = config("unused", eval=_data(tmp_path), too_long=policy)
        return EvalLoader(data, _cutting(processor, 40, policy), micro_batch_size=12)

    with pytest.raises(UserError, match="line 6"):
        list(load("fail"))
    dropping = load("drop")
    ((batches,),) = [list(dropping)]
    assert [name for name in batches[0].ids if name] == [f"n{i}" for i in range(12) if i not in (5, 7)]
    assert {bad.id for bad in dropping.bad} == {"n5", "n7"}
    examples = load("truncate_text").examples(12)
    assert "n5" in {example.id for example in examples}
    assert "n7" not in {example.id for example in examples}  # its question alone is too long to be continued
