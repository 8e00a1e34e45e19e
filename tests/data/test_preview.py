"""Samples for the eye: nothing is lost, nothing is made up, and nothing that data holds is obeyed."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loongforge.data.preview import Preview, preview
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import Location, RawSample
from loongforge.data.show.page import page
from loongforge.data.show.samples import Gallery, Shown
from loongforge.data.show.terminal import sample_text
from loongforge.data.visible import visible
from tests.data.conftest import chat, config, png, write_jsonl
from tests.data.planted import image, talk

EVIL = "<script>alert(1)</script>"


def _raw(messages: list[dict[str, Any]], images: int = 0, name: str = "s") -> RawSample:
    return RawSample(id=name, messages=messages, images=[lambda i=i: image(i) for i in range(images)])


def _preview(processor: SampleProcessor, raw: RawSample) -> Preview:
    return preview(processor(raw), processor, raw)


def _page(*previews: Preview, lengths: tuple[int, ...] = (3, 4)) -> str:
    place = Location("data/*.tar", "data/a.tar", "k1")
    return page("title", [Shown(i, place, one) for i, one in enumerate(previews)], lengths)


class _Reader(HTMLParser):
    """Tags, and the text of what has the class `t`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tokens: list[tuple[str, str]] = []
        self._kind: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        kind = dict(attrs).get("class") or ""
        if tag == "span" and kind.split()[:1] == ["t"]:
            self._kind = kind
            self.tokens.append((kind, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self._kind = None

    def handle_data(self, data: str) -> None:
        if self._kind is not None:
            self.tokens[-1] = (self._kind, self.tokens[-1][1] + data)


def test_roles_begin_where_the_template_lets_them(processor: SampleProcessor) -> None:
    turns = [{"role": "system", "content": "Be brief."}, *chat(), *chat("<image> And?", "top left")]
    shown = _preview(processor, _raw(turns, 2))
    assert list(shown.roles.values()) == ["system", "user", "assistant", "user", "assistant"]
    starts = [*shown.roles, len(shown.pieces)]
    said = ["".join(p.text for p in shown.pieces[a:b]) for a, b in itertools.pairwise(starts)]
    for part, words in zip(said, ["Be brief", "digit is shown", "7</s>", "And?", "top left</s>"], strict=True):
        assert words in part
    assert preview(processor(_raw(chat(), 1)), processor).roles == {}


def test_spaces_between_tokens_stay(processor: SampleProcessor) -> None:
    shown = _preview(processor, _raw(talk("What is  the sum of all?", "one and two")))
    assert "".join(piece.text for piece in shown.pieces) == "USER: What is  the sum of all? ASSISTANT: one and two</s>"


def test_a_character_of_several_tokens_is_one_piece(processor: SampleProcessor) -> None:
    done = processor(_raw(talk("What 人 is 🦜 it?", "the 人 \ufffd")))
    shown = preview(done, processor)
    assert [i for piece in shown.pieces for i in piece.ids] == done.ids.tolist()
    assert {piece.text for piece in shown.pieces if len(piece.ids) > 1} == {"人", "🦜"}
    assert any(piece.text == "人" and piece.learned for piece in shown.pieces)


def test_terminal(processor: SampleProcessor) -> None:
    shown = _preview(processor, _raw(chat("<image><image>\n\x1b[31mred\u202e", "7"), 2, name="a\x1bb"))
    plain = sample_text(shown, coloured=False).plain
    assert plain.count("<image> x4") == 2
    assert "[7][</s>]" in plain and "user |" in plain and "assistant |" in plain
    assert "\x1b" not in plain and "\u202e" not in plain and r"\x1b" in plain and r"\u202e" in plain
    coloured = sample_text(shown, coloured=True)
    green = {coloured.plain[span.start : span.end] for span in coloured.spans if span.style == "bold green"}
    assert green == {"7", "</s>"}
    assert sample_text(shown, coloured=False, most=3).plain.endswith(f" ... {len(shown.pieces) - 3} more")


def test_page_shows_what_the_model_sees(processor: SampleProcessor) -> None:
    sample = _raw(chat("<image>\nWhich & <b>?", "seven\neight"), 1)
    shown, done = _preview(processor, sample), processor(sample)
    reader = _Reader(_page(shown))
    tokens = reader.tokens[2:]  # the first two explain the colours
    assert [text.replace("↵\n", "\n") for _, text in tokens] == [
        f"{piece.text} x4" if piece.is_image else piece.text for piece in shown.pieces
    ]
    assert [kind for kind, _ in tokens].count("t learned") == shown.num_learned
    (uri,) = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert uri is not None and uri.startswith("data:image/png;base64,")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert (pixels == done.pixels[0]).all()


def test_page_of_tiles(processor: SampleProcessor) -> None:
    shown = _preview(processor, _raw(chat("<image>\nWhich?"), 1))
    (pixels,), ((first, end),) = shown.pixels, shown.image_spans
    cut = dataclasses.replace(shown, units=(3,), pixels=[pixels] * 3)
    text = _page(cut)
    assert text.count("<figure>") == 3
    assert f"image 0, tile 3 of 3: 32 x 32, tokens {first} to {end - 1}" in text


@pytest.mark.parametrize("where", ["question", "answer", "id", "place", "role", "problem", "title"])
def test_page_runs_nothing(processor: SampleProcessor, where: str) -> None:
    question, answer = (EVIL if where == name else "What?" for name in ("question", "answer"))
    shown = _preview(processor, _raw(talk(question, answer), name=EVIL if where == "id" else "s"))
    place = Location(*([f"{EVIL}'\""] * 3 if where == "place" else ["a", "b", "c"]))
    if where == "role":
        shown.roles[0] = EVIL
    samples = [Shown(0, place, shown), Shown(1, place, None, EVIL if where == "problem" else "broken")]
    text = page(EVIL if where == "title" else "title", samples, [4])
    reader = _Reader(text)
    allowed = (
        "html head meta title style body h1 h2 p article span div details summary table tr td figure img figcaption"
    )
    assert {tag for tag, _ in reader.tags} <= set(allowed.split())
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert "alert(1)" in re.sub("<[^>]*>", "", text).replace("&lt;", "<") or where == "place"
    assert "http" not in text.replace("http-equiv", "")
    assert "default-src 'none'" in text


def test_page_of_lengths(processor: SampleProcessor) -> None:
    shown = _preview(processor, _raw(talk()[1:] and talk("What?")))
    assert "of 3 samples" in _page(shown, lengths=(3, 0, 3, 9))
    assert "Tokens of a sample" not in _page(shown, lengths=(0,))


def test_cut_sample_has_no_roles(processor: SampleProcessor) -> None:
    raw = _raw(talk("What?", "word " * 100))
    done = SampleProcessor(
        processor.tokenizer, max_length=40, num_image_tokens=4, image_processor=processor.image_processor,
        too_long="truncate_text",
    )(raw)  # fmt: skip
    assert len(done.ids) == 40
    assert preview(done, processor, raw).roles == {}


def test_gallery(processor: SampleProcessor, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    records: list[Any] = [{"id": f"n{i}", "messages": talk("What?", str(i))} for i in range(4)]
    records.append({"id": "bad", "images": ["a.png"], "messages": talk("What?")})
    path = str(write_jsonl(tmp_path, records))
    held = Gallery(config(path, eval=path), processor, held_out=True, seed=1)
    shown = [held.show(i) for i in range(5)]
    assert [one.preview.id for one in shown[:4] if one.preview] == ["n0", "n1", "n2", "n3"]
    assert shown[4].preview is None and "1 images" in shown[4].problem
    assert [held.length(i) > 0 for i in range(5)] == [True] * 4 + [False]
    trained = Gallery(config(path), processor, held_out=False, seed=1)
    order = [trained.show(i).location.key for i in range(10)]
    assert sorted(order[:5]) == sorted(order[5:]) == [f"line {i}" for i in range(1, 6)]
    assert order[:5] != order[5:]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é", "plain é"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x00\x9b", "\\x00\\x9b"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown
