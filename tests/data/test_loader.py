from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from loongforge.config.errors import UserError
from loongforge.config.schema import ParallelConfig, SourceConfig
from loongforge.data.arrange import Rules
from loongforge.data.batch import IGNORE, Batch
from loongforge.data.eval_loader import EvalLoader
from loongforge.data.loader import TrainLoader
from loongforge.data.part import Part
from loongforge.data.processing import SampleProcessor
from loongforge.data.sources.shard_writer import write_shards
from loongforge.parallel.layout import Layout
from tests.data.conftest import chat, config, png, shard_sample, write_jsonl, write_tar
from tests.support.tiny import tiny_config


def _loader(processor: SampleProcessor, train: Any, **options: Any) -> TrainLoader:
    keys = ("bad_sample", "prefetch", "shuffle", "image_dir")
    data = config(train, **{key: options.pop(key) for key in keys if key in options})
    sizes = {"seed": 3, "global_batch_size": 8, "micro_batch_size": 2}
    return TrainLoader(data, processor, **{**sizes, **options})


def _load(loader: TrainLoader, step: int) -> list[Batch]:
    """Micro-batches of the first replica."""
    return next(iter(loader.load(step).micro_batches.values()))


def _ids(loader: TrainLoader, step: int) -> list[list[str]]:
    return [batch.ids for batch in _load(loader, step)]


@pytest.fixture
def shards(tmp_path: Path) -> str:
    write_tar(tmp_path / "t", 30)
    return str(tmp_path / "t" / "a-*.tar")


def test_batch_contents(processor: SampleProcessor, shards: str) -> None:
    (batch, *others) = _load(_loader(processor, shards, pad_multiple=8), 0)
    assert batch.tokens.dtype == batch.labels.dtype == batch.lengths.dtype == torch.int64
    assert (batch.images.dtype, batch.images.shape) == (torch.float32, (2, 3, 32, 32))
    assert all(other.tokens.shape == batch.tokens.shape for other in others)
    assert batch.tokens.shape[1] % 8 == 0
    for row, name in enumerate(batch.ids):
        length = int(batch.lengths[row])
        assert (batch.tokens[row, length:] == processor.pad_id).all()
        targets = batch.labels[row][batch.labels[row] != IGNORE]
        assert processor.decode(targets.tolist()) == name.removeprefix("id") + "</s>"
        # a label is the token that follows
        where = torch.nonzero(batch.labels[row] != IGNORE).flatten()
        assert (batch.tokens[row, where + 1] == targets).all()
        assert where[-1] == length - 2
        value = (int(name.removeprefix("id")) / 255 - 0.30) / 0.38
        torch.testing.assert_close(batch.images[row], torch.full((3, 32, 32), value), atol=1e-6, rtol=0)


@pytest.mark.parametrize("micro", [1, 2])
def test_any_number_of_ranks_gives_the_same_global_batch(processor: SampleProcessor, shards: str, micro: int) -> None:
    alone = _loader(processor, shards)
    for step in (0, 3, 11):
        expected = sorted(itertools.chain(*_ids(alone, step)))
        for dp_size in (1, 2, 4):
            ranks = [
                _loader(processor, shards, replicas=[rank], dp_size=dp_size, micro_batch_size=micro)
                for rank in range(dp_size)
            ]
            assert sorted(itertools.chain(*(ids for rank in ranks for ids in _ids(rank, step)))) == expected
            # micro-batch m of all ranks together is the same slice of the step
            merged = [list(itertools.chain(*group)) for group in zip(*(_ids(r, step) for r in ranks), strict=True)]
            assert list(itertools.chain(*merged)) == list(itertools.chain(*_ids(alone, step)))


def test_an_epoch_of_steps_visits_every_sample_once(processor: SampleProcessor, tmp_path: Path) -> None:
    write_tar(tmp_path, 32)
    loader = _loader(processor, str(tmp_path / "a-*.tar"))
    seen = [name for step in range(4) for group in _ids(loader, step) for name in group]
    assert sorted(seen) == sorted(f"id{i}" for i in range(32))
    assert loader.epoch(4) == 1.0


def test_a_rank_reads_only_its_own_samples(processor: SampleProcessor, shards: str) -> None:
    loader = _loader(processor, shards, replicas=[1], dp_size=4)
    read: list[int] = []
    load = loader.sources[0].load

    class Spy:
        name = "spy"
        __len__ = loader.sources[0].__len__
        locate = staticmethod(loader.sources[0].locate)

        @staticmethod
        def load(index: int, max_bytes: int) -> Any:
            read.append(index)
            return load(index, max_bytes)

    loader.fetcher.sources[0] = Spy()  # type: ignore[assignment]
    assert len(read) == 0
    assert len(_ids(loader, 0)[0]) == len(read) == 2


def _equal(a: Batch, b: Batch) -> bool:
    return a.ids == b.ids and all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("tokens", "labels", "images"))


def test_prefetch_changes_nothing_and_steps_may_jump(processor: SampleProcessor, shards: str) -> None:
    plain, ahead = _loader(processor, shards), _loader(processor, shards, prefetch=3)
    for step in (0, 1, 2, 7, 8, 3, 3, 4, 0):
        for a, b in zip(_load(plain, step), _load(ahead, step), strict=True):
            assert _equal(a, b)
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("data")]


def test_a_rank_that_works_on_several_replicas_gets_what_each_would_get(
    processor: SampleProcessor, tmp_path: Path
) -> None:
    path = _with_bad(tmp_path / "d", {3, 4, 11, 17, 20})
    options: dict[str, Any] = dict(bad_sample="skip", dp_size=4)
    both = _loader(processor, path, replicas=[1, 3], **options)
    for step in range(3):
        data = both.load(step)
        assert list(data.micro_batches) == list(data.bad) == [1, 3]
        for replica in (1, 3):
            alone = _loader(processor, path, replicas=[replica], **options).load(step)
            assert data.bad[replica] == alone.bad[replica]
            for a, b in zip(data.micro_batches[replica], alone.micro_batches[replica], strict=True):
                assert _equal(a, b)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_policy_fail_names_the_sample(processor: SampleProcessor, tmp_path: Path, prefetch: int) -> None:
    samples = [shard_sample(i) for i in range(8)]
    samples[5] = shard_sample(5, **{"0.png": b"broken"})
    (tar,) = write_shards(tmp_path, "a", samples, 10)
    loader = _loader(processor, str(tar), prefetch=prefetch)
    with pytest.raises(UserError) as caught:
        loader.load(0)
    loader.close()
    for words in ("bad sample: s0005 of", str(tar), "id 'id5'", "cannot be decoded", "data.bad_sample=skip"):
        assert words in str(caught.value)


def _with_bad(folder: Path, bad: set[int], number: int = 24) -> str:
    folder.mkdir()
    (folder / "1.png").write_bytes(png())
    records = [{"id": f"id{i}", "images": [f"{int(i not in bad)}.png"], "messages": chat()} for i in range(number)]
    return str(write_jsonl(folder, records))  # type: ignore[arg-type]


def test_policy_skip_replaces_alike_on_any_ranks(processor: SampleProcessor, tmp_path: Path) -> None:
    path = _with_bad(tmp_path / "d", {3, 4, 11, 17, 20})
    for step in range(6):
        results = []
        for dp_size in (1, 2, 4):
            ranks = [
                _loader(processor, path, bad_sample="skip", replicas=[r], dp_size=dp_size).load(step)
                for r in range(dp_size)
            ]
            ids = sorted(name for rank, data in enumerate(ranks) for b in data.micro_batches[rank] for name in b.ids)
            results.append((ids, {record for rank, data in enumerate(ranks) for record in data.bad[rank]}))
        assert results[0] == results[1] == results[2]
        assert not {"id3", "id4", "id11", "id17", "id20"} & set(results[0][0])
    loader = _loader(processor, path, bad_sample="skip")
    records = [record for step in range(3) for record in loader.load(step).bad[0]]
    assert {record.id for record in records} >= {"id3", "id4", "id11", "id17", "id20"}
    first = next(record for record in records if record.id == "id3")
    assert (first.source, first.shard, first.key) == (path, path, "line 4")
    assert "No such file" in first.reason
    position = next(p for p in range(24) if loader.order.at(p) == (0, 3))
    assert first.replaced_by == str(loader.sources[0].locate(loader.order.replacement(position, 1)[1]))
    again = _loader(processor, path, bad_sample="skip", prefetch=2)  # a resumed run
    assert again.load(2).bad == loader.load(2).bad
    again.close()


def test_skip_gives_up_when_everything_is_bad(processor: SampleProcessor, tmp_path: Path) -> None:
    loader = _loader(processor, _with_bad(tmp_path / "d", set(range(24))), bad_sample="skip")
    with pytest.raises(UserError, match=r"100 samples of .* in a row are bad; the last one: line"):
        loader.load(0)


def test_sizes_must_divide(processor: SampleProcessor, shards: str) -> None:
    with pytest.raises(UserError, match=r"global_batch_size=8 must be a multiple of .*=3 x 1 data-parallel ranks = 3"):
        _loader(processor, shards, micro_batch_size=3)
    with pytest.raises(UserError, match="2 x 8 data-parallel ranks = 16"):
        _loader(processor, shards, dp_size=8)


def test_sources_mixed_by_weight(processor: SampleProcessor, tmp_path: Path) -> None:
    parts = []
    for name, weight in (("x", 3.0), ("y", 1.0)):
        path = write_jsonl(tmp_path, [{"id": f"{name}{i}", "text": f"{name} {i}"} for i in range(5)], f"{name}.jsonl")
        parts.append(SourceConfig(path=str(path), weight=weight))
    loader = _loader(processor, parts)
    for step in range(5):
        names = [name[0] for group in _ids(loader, step) for name in group]
        assert (names.count("x"), names.count("y")) == (6, 2)
    assert _load(loader, 0)[0].images.shape == (0, 3, 32, 32)


def _eval(processor: SampleProcessor, path: str, **options: Any) -> EvalLoader:
    data = config("unused", eval=path, bad_sample=options.pop("bad_sample", "fail"))
    return EvalLoader(data, processor, **{"micro_batch_size": 4, **options})


def _batches(loader: EvalLoader) -> list[Batch]:
    return [batch for by_replica in loader for batch in by_replica.values()]


@pytest.mark.parametrize("dp_size", [1, 2, 3, 5])
def test_eval_shares_the_set_in_equal_numbers_of_batches(processor: SampleProcessor, shards: str, dp_size: int) -> None:
    ranks = [_batches(_eval(processor, shards, replicas=[r], dp_size=dp_size)) for r in range(dp_size)]
    assert len({len(batches) for batches in ranks}) == 1
    by_turn = [batch for turn in zip(*ranks, strict=True) for batch in turn]
    assert [name for batch in by_turn for name in batch.ids if name] == [f"id{i}" for i in range(30)]
    for batch in by_turn:
        assert batch.tokens.shape[0] == 4
        assert len(batch.images) == sum(name != "" for name in batch.ids)
        for row, name in enumerate(batch.ids):
            assert (name == "") == bool((batch.labels[row] == IGNORE).all())


def test_eval_gives_batches_of_several_replicas_side_by_side(processor: SampleProcessor, shards: str) -> None:
    both = list(_eval(processor, shards, replicas=[0, 2], dp_size=3))
    for replica in (0, 2):
        alone = _batches(_eval(processor, shards, replicas=[replica], dp_size=3))
        assert all(_equal(a[replica], b) for a, b in zip(both, alone, strict=True))
    assert [sorted(by_replica) for by_replica in both] == [[0, 2]] * 3


def test_eval_can_be_iterated_again_and_limited(processor: SampleProcessor, shards: str) -> None:
    loader = _eval(processor, shards, limit=7)
    names = [name for batch in _batches(loader) for name in batch.ids if name]
    assert names == ["id0", "id4", "id8", "id12", "id17", "id21", "id25"]
    assert [name for batch in _batches(loader) for name in batch.ids if name] == names
    assert (len(loader), loader.num_samples) == (2, 7)
    assert _eval(processor, shards, limit=1000).num_samples == 30


def test_eval_bad_samples(processor: SampleProcessor, tmp_path: Path) -> None:
    path = _with_bad(tmp_path / "d", {1, 2}, 9)
    with pytest.raises(UserError, match=r"bad sample: line 2 of .*id 'id1'"):
        list(_eval(processor, path))
    loader = _eval(processor, path, bad_sample="skip")
    for _ in range(2):
        assert [batch.ids for batch in _batches(loader)] == [
            ["id0", "id3", "", ""],
            ["id4", "id5", "id6", "id7"],
            ["id8", "", "", ""],
        ]
    assert [record.id for record in loader.bad] == ["id1", "id2"]
    with pytest.raises(UserError, match=r"data\.eval is not set"):
        EvalLoader(config("unused"), processor, micro_batch_size=4)


def test_examples_for_generation(processor: SampleProcessor, shards: str, tmp_path: Path) -> None:
    example = _eval(processor, shards).examples(3)[1]
    assert (example.id, example.question, example.reference) == ("id10", "<image>\nWhich digit is shown?", "10")
    assert example.prompt == processor.render_prompt(chat()[:1], processor.images([(0, 0)]))
    assert example.images.shape == (1, 3, 32, 32)
    path = write_jsonl(tmp_path, [{"text": "one two three four"}])
    (text,) = _eval(processor, str(path)).examples(3)
    assert text.question + text.reference == "one two three four"


def test_pydoc_text_trains_on_every_token(pydoc: Path) -> None:
    from loongforge.data.tokenizer import load_tokenizer

    processor = SampleProcessor(load_tokenizer(pydoc / "tokenizer"), max_length=400)
    batch = _load(_loader(processor, str(pydoc / "train.jsonl")), 0)[0]
    assert ((batch.labels != IGNORE).sum(1) == batch.lengths - 1).all()
    assert (batch.labels[0, : batch.lengths[0] - 1] == batch.tokens[0, 1 : batch.lengths[0]]).all()
    lines = [json.loads(line)["text"] for line in (pydoc / "train.jsonl").read_text().splitlines()]
    assert max(len(processor.tokenizer.encode(line)) for line in lines) < 380


def test_samples_are_processed_once(processor: SampleProcessor, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = _loader(processor, f"{digits}/train-*.tar", global_batch_size=32, micro_batch_size=32)
    calls = []
    original = SampleProcessor.__call__
    monkeypatch.setattr(SampleProcessor, "__call__", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    for step in [*range(3), *range(3)]:
        loader.load(step)
    assert len(calls) == 3 * 32


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("world", "tp"), [(2, 2), (4, 2), (4, 1)])
def test_ranks_share_the_images_and_read_only_theirs(
    processor: SampleProcessor, shards: str, world: int, tp: int, packed: bool
) -> None:
    """Each image of a replica is read by one of the encoder replicas on its ranks; tokens by all of them."""
    layout = Layout.from_model(tiny_config(parallel=ParallelConfig(tp=tp)).model, world)
    rules = Rules(replicas=layout.dp, encoders=world, token_budget=256)
    seen: dict[str, torch.Tensor] = {}
    for rank in range(world):
        part = Part(layout, rank, lambda number: number)
        sizes = {"replicas": layout.replicas(rank), "dp_size": layout.dp, "packing": rules if packed else None}
        for batch in _load(_loader(processor, shards, part=part, **sizes), 0):
            plan = batch.image_plan
            assert plan is not None
            assert len(plan.held) == len(batch.images) <= plan.total == len(batch.ids)
            for place, pixels in zip(plan.held.tolist(), batch.images, strict=True):
                assert seen.setdefault(batch.ids[place], pixels) is pixels  # nobody else has read it
    batches = _load(_loader(processor, shards), 0)
    whole = {name: image for batch in batches for name, image in zip(batch.ids, batch.images, strict=True)}
    assert set(seen) == set(whole)
    assert all(torch.equal(seen[name], whole[name]) for name in whole)
