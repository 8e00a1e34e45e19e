"""A sample in a terminal."""

from __future__ import annotations

from rich.text import Text

from loongforge.data.preview import Preview
from loongforge.data.visible import visible


def sample_text(shown: Preview, *, coloured: bool, most: int | None = None) -> Text:
    """What the model reads, and what of it is learned.

    Args:
        shown: The sample.
        coloured: Tell learned tokens by their colour, else by brackets.
        most: Tokens and images that are shown, at most; None: all.
    """
    text = Text(f"sample {visible(shown.id)}: ")
    for number, piece in enumerate(shown.pieces[:most]):
        if number in shown.roles:
            text.append("\n")
            text.append(f" {visible(shown.roles[number])} ", style="reverse" if coloured else "")
            text.append(" " if coloured else "| ")
        words = visible(piece.text) + (f" x{len(piece.ids)}" if piece.is_image else "")
        if coloured:
            text.append(words, style="bold green" if piece.learned else "magenta" if piece.is_image else "dim")
        else:
            text.append(f"[{words}]" if piece.learned else words)
    if most is not None and len(shown.pieces) > most:
        text.append(f" ... {len(shown.pieces) - most} more")
    return text


def legend(*, coloured: bool) -> str:
    """How to read it."""
    return "what is learned is green" if coloured else "what is learned stands in [brackets]"
