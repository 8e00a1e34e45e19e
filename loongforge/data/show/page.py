"""Samples as one HTML file that needs nothing else, and runs nothing: data is not trusted."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from PIL import Image

from loongforge.data.check.outlook import histogram
from loongforge.data.preview import Piece, Preview
from loongforge.data.show.samples import Shown
from loongforge.data.visible import visible

_LEAST_EDGE = 96  # pixels on the screen of an image that is smaller

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
article { border: 1px solid #8886; border-radius: 8px; padding: .5rem 1rem 1rem; margin: 1rem 0 }
h2 { font-size: 1.05rem; margin: .3rem 0 } .where, figcaption, summary { color: #777; font-size: .85rem }
figure { display: inline-block; margin: .5rem 1rem .5rem 0 } img { image-rendering: pixelated; border: 1px solid #8886 }
.message { border-left: 3px solid #8886; padding-left: .7rem; margin: .5rem 0; white-space: pre-wrap;
  overflow-wrap: anywhere; font-family: ui-monospace, monospace }
.role { font: bold .75rem system-ui, sans-serif; text-transform: uppercase; color: #777; display: block }
.t { border-radius: 3px; outline: 1px solid #8883 } .learned { background: #2a95; font-weight: bold }
.image { background: #b4b5 } .problem { color: #c22 } .ids { font: .8rem ui-monospace, monospace; word-spacing: .3em }
.bar { display: inline-block; height: .8em; background: #48c; vertical-align: middle }
table { border-spacing: .5rem 0; font-variant-numeric: tabular-nums }
td { text-align: right } td:last-child { text-align: left }
"""

_HEAD = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>samples</title><style>{_STYLE}</style></head><body>
"""


def page(title: str, samples: Sequence[Shown], lengths: Sequence[int]) -> str:
    """The page.

    Args:
        title: Shown above.
        samples: Shown one below the other.
        lengths: Tokens of some samples, for the histogram.
    """
    parts = [
        _HEAD,
        f"<h1>{_safe(title)}</h1><p>As the model sees them. <span class='t learned'>What is learned</span>, "
        "<span class='t image'>image tokens</span>; a token's id and position appear where the pointer rests.</p>",
        *(_article(shown) for shown in samples),
        _bars(lengths),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _article(shown: Shown) -> str:
    place, found = shown.location, shown.preview
    where = f"<p class='where'>{_safe(place.key)} of {_safe(place.shard)}, source {_safe(place.source)}</p>"
    if found is None:
        title = f"<h2>{shown.position}: bad sample</h2>"
        return f"<article>{title}{where}<p class='problem'>{_safe(shown.problem)}</p></article>"
    counts = f"{found.num_tokens} tokens, {found.num_learned} of them learned, {len(found.units)} images"
    return (
        f"<article><h2>{shown.position}: {_safe(found.id)}</h2>{where}<p class='where'>{counts}</p>"
        f"{''.join(_figures(found))}{''.join(_messages(found))}"
        f"<details><summary>token ids</summary><p class='ids'>{_ids(found)}</p></details></article>"
    )


def _figures(found: Preview) -> Iterator[str]:
    tiles = iter(found.pixels)
    for number, (units, span) in enumerate(zip(found.units, found.image_spans, strict=True)):
        for tile in range(units):
            pixels = next(tiles)
            height, width = pixels.shape[:2]
            zoom = max(1, -(-_LEAST_EDGE // min(height, width)))
            part = f", tile {tile + 1} of {units}" if units > 1 else ""
            yield (
                f"<figure><img src='{_data_uri(pixels)}' width='{width * zoom}' height='{height * zoom}' alt=''>"
                f"<figcaption>image {number}{part}: {width} x {height}, tokens {span[0]} to {span[1] - 1}"
                "</figcaption></figure>"
            )


def _data_uri(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _messages(found: Preview) -> Iterator[str]:
    starts = sorted({0, *found.roles})
    spans, position = [], 0
    for piece in found.pieces:
        spans.append(_token(piece, position))
        position += len(piece.ids)
    for first, end in zip(starts, [*starts[1:], len(spans)], strict=True):
        role = f"<span class='role'>{_safe(found.roles[first])}</span>" if first in found.roles else ""
        yield f"<div class='message'>{role}{''.join(spans[first:end])}</div>"


def _token(piece: Piece, position: int) -> str:
    if piece.is_image:
        return (
            f"<span class='t image' title='positions {position} to {position + len(piece.ids) - 1}, id {piece.ids[0]}'>"
            f"{_safe(piece.text)} x{len(piece.ids)}</span>"
        )
    # a line break is shown, and made
    words = "↵\n".join(_safe(line) for line in piece.text.split("\n"))
    kind = "t learned" if piece.learned else "t"
    return f"<span class='{kind}' title='position {position}, id {piece.ids[0]}'>{words}</span>"


def _ids(found: Preview) -> str:
    return " ".join(f"{p.ids[0]}&times;{len(p.ids)}" if len(p.ids) > 1 else str(p.ids[0]) for p in found.pieces)


def _bars(lengths: Sequence[int]) -> str:
    good = np.array([length for length in lengths if length > 0], np.int64)
    if not len(good):
        return ""
    bars = histogram(good)
    most = max(count for *_, count in bars)
    rows = (
        f"<tr><td>{low}{f' to {high}' if high > low else ''}</td><td>{count}</td>"
        f"<td><span class='bar' style='width:{30 * count / most:.1f}rem'></span></td></tr>"
        for low, high, count in bars
    )
    return f"<h2>Tokens of a sample</h2><p class='where'>of {len(good)} samples</p><table>{''.join(rows)}</table>"


def _safe(text: str) -> str:
    return escape(visible(text), quote=True)
