from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loongforge.config.errors import UserError
from loongforge.data.batch import IGNORE, collate
from loongforge.data.fetch import BadSampleError, SampleFetcher
from loongforge.data.meta_columns import MetaColumns
from loongforge.data.metadata import MetadataTable, SampleMeta
from loongforge.data.processing import SampleProcessor
from loongforge.data.sources import open_source
from tests.data.conftest import chat, png, write_jsonl, write_tar


def _mixed(folder: Path) -> Any:
    """Good and bad samples of many kinds; those with a `late` id are bad behind the header of an image."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "wide.png").write_bytes(png(5, (40, 20)))
    (folder / "tall.png").write_bytes(png(5, (8, 30)))
    (folder / "torn.png").write_bytes(png(5, (640, 640))[:80])
    (folder / "none.png").write_bytes(b"hello")
    (folder / "flat.png").write_bytes(png(5, (100000, 1)))
    good: list[Any] = [
        {"id": "two", "images": ["wide.png", "tall.png"], "messages": chat("<image><image> Same?", "no")},
        {"id": "text", "messages": chat("hi", "7 of 7")},
        {"id": "raw", "text": "hello world"},
    ]
    bad: list[Any] = [
        {"id": "late", "images": ["wide.png", "torn.png"], "messages": chat("<image><image>?")},
        {"id": "no image", "images": ["none.png"], "messages": chat()},
        {"id": "missing", "images": ["nowhere.png"], "messages": chat()},
        {"id": "bomb", "images": ["flat.png"], "messages": chat()},
        {"id": "out", "images": ["../x.png"], "messages": chat()},
        {"id": "fewer", "images": ["wide.png"], "messages": chat("hi")},
        {"id": "roles", "messages": chat()[:1]},
        {"id": "long", "messages": chat("hello " * 100)},
        {"id": "empty", "text": ""},
        "{nope",
    ]
    return open_source(str(write_jsonl(folder, good + bad)), "data.train")


def test_says_what_the_batch_will_hold(tmp_path: Path, processor: SampleProcessor) -> None:
    source = _mixed(tmp_path)
    table, fetcher = MetadataTable([source], processor), SampleFetcher([source], processor)
    sizes = [((40, 20), (8, 30)), (), ()]
    for index in range(3):
        sample, meta = fetcher.fetch(0, index), table.get(0, index)
        batch = collate([sample], processor, rows=1, length=len(sample.ids))
        assert meta.image_sizes == sizes[index]
        assert meta.text_tokens == int((batch.tokens != processor.image_token_id).sum())
        assert meta.text_tokens + 4 * len(meta.image_sizes) == len(sample.ids)
        assert meta.label_tokens == int((batch.labels != IGNORE).sum())
        assert meta.problem is None


@pytest.mark.parametrize("decode", [False, True])
def test_problems_are_those_of_fetching(tmp_path: Path, processor: SampleProcessor, decode: bool) -> None:
    source = _mixed(tmp_path)
    table, fetcher = MetadataTable([source], processor, decode=decode), SampleFetcher([source], processor)
    for _ in range(2):  # found, and remembered
        for index in range(3, len(source)):
            with pytest.raises(BadSampleError) as raised:
                fetcher.fetch(0, index)
            late = index == 3 and not decode
            assert table.get(0, index) == (
                SampleMeta(table.get(0, index).text_tokens, 2, ((40, 20), (640, 640)))
                if late
                else SampleMeta(0, 0, (), raised.value.reason)
            )


def test_every_sample_is_measured_once(tmp_path: Path, processor: SampleProcessor) -> None:
    write_tar(tmp_path, 6)
    source = open_source(str(tmp_path), "data.train")
    table = MetadataTable([source, source], processor)
    first = [[table.get(s, i) for i in range(6)] for s in (0, 1)]
    assert first[0] == first[1]
    table._fetcher.measure = None  # type: ignore[assignment,method-assign]
    assert [[table.get(s, i) for i in range(6)] for s in (0, 1)] == first


def test_no_sample_can_be_processed(tmp_path: Path, processor: SampleProcessor) -> None:
    import copy

    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.chat_template = "{{ messages }}"
    other = SampleProcessor(tokenizer, max_length=64, num_image_tokens=4, image_processor=processor.image_processor)
    with pytest.raises(UserError, match="generation"):
        MetadataTable([_mixed(tmp_path)], other).get(0, 0)


def test_columns_take_few_bytes() -> None:
    columns, rng = MetaColumns(20_000), np.random.default_rng(0)
    metas = [
        SampleMeta(int(t), int(t) // 2 + 1, tuple((int(w), 7) for w in rng.integers(1, 9999, rng.integers(0, 4))))
        for t in rng.integers(2, 5000, 20_000)
    ]
    for i in rng.permutation(20_000).tolist():
        columns.put(i, metas[i] if i % 1000 else SampleMeta(0, 0, (), f"bad {i}"))
    for i in rng.integers(0, 20_000, 2000).tolist():
        assert columns.get(i) == (metas[i] if i % 1000 else SampleMeta(0, 0, (), f"bad {i}"))
    arrays = [value for value in vars(columns).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) < 50 * 20_000


def test_columns_of_several_threads() -> None:
    columns = MetaColumns(3000)

    def fill(offset: int) -> None:
        for i in range(3000):
            j = (i + offset) % 3000
            columns.put(j, SampleMeta(j + 1, j, ((j, j),) * (j % 5)))
            assert columns.get(j) == SampleMeta(j + 1, j, ((j, j),) * (j % 5))

    threads = [threading.Thread(target=fill, args=(700 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(columns.get(j) == SampleMeta(j + 1, j, ((j, j),) * (j % 5)) for j in range(3000))
