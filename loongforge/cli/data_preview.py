"""`loongforge data preview`: shows samples as the model sees them."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loongforge.cli.parser import Parser, check_least
from loongforge.config.errors import UserError

if TYPE_CHECKING:
    from loongforge.config.schema import Config
    from loongforge.data.show.samples import Shown

_HISTOGRAM = 256  # samples whose lengths a page shows

_EXAMPLES = """
  loongforge data preview +recipe=llava_sft
  loongforge data preview +recipe=llava_sft --samples 20 --start 100 --html preview.html
  loongforge data preview +recipe=llava_sft --set eval
  loongforge data preview +recipe=llava_sft packing.enabled=true launcher.nproc=2 --packs"""


def run(argv: Sequence[str]) -> int:
    """Shows samples; returns the exit code."""
    from loongforge.cli import recipe_args

    parser = Parser(
        "data preview",
        "Shows samples as the model sees them: tokens, what of them is learned, images. In the order of training.",
        _EXAMPLES,
    )
    recipe_args.add_overrides(parser)
    parser.add_argument("--samples", type=int, default=5, metavar="N", help="how many (default: 5)")
    parser.add_argument("--start", type=int, default=0, metavar="K", help="leave out the first K (default: 0)")
    parser.add_argument("--set", choices=("train", "eval"), default="train", help="default: train")
    parser.add_argument("--html", metavar="FILE", help="write one self-contained page in place of printing")
    parser.add_argument("--packs", action="store_true", help="show how the first step's samples are packed instead")
    args = parser.parse(argv)
    check_least(args, samples=1, start=0)
    config = recipe_args.load_recipe(args).config
    return _packs(config) if args.packs else _preview(config, args)


def _preview(config: Config, args: Namespace) -> int:
    from loongforge.cli.data_recipe import recipe_processor
    from loongforge.data.show.samples import Gallery

    if args.set == "eval" and config.data.eval is None:
        raise UserError("--set eval: the recipe has no held-out data; set data.eval")
    gallery = Gallery(config.data, recipe_processor(config), held_out=args.set == "eval", seed=config.trainer.seed)
    if args.set == "eval" and args.start >= gallery.num_samples:
        raise UserError(f"--start {args.start} is beyond the {gallery.num_samples} samples of data.eval")
    end = args.start + args.samples if args.set == "train" else min(args.start + args.samples, gallery.num_samples)
    shown = [gallery.show(position) for position in range(args.start, end)]
    if args.html is None:
        _print(shown)
        return 0
    from loongforge.data.show.page import page

    lengths = [gallery.length(position) for position in range(min(_HISTOGRAM, gallery.num_samples))]
    _write(Path(args.html), page(f"{config.name}: samples {args.start} to {end - 1} of {args.set}", shown, lengths))
    print(f"{len(shown)} samples are in {args.html}")
    return 0


def _packs(config: Config) -> int:
    from loongforge.cli.data_recipe import first_loads
    from loongforge.cli.processes import check_fit
    from loongforge.data.arrange import arrange
    from loongforge.data.show.packs import pack_lines
    from loongforge.planning.packing import packing_rules

    rules = packing_rules(config, check_fit(config, config.launcher.nproc or 1))
    if rules is None:
        raise UserError("--packs shows packed rows; add packing.enabled=true")
    (samples,) = first_loads(config, steps=1)
    loads = [load for _, load in samples]
    print("\n".join(pack_lines(arrange(loads, rules), loads, [name for name, _ in samples], rules)))
    return 0


def _print(samples: Sequence[Shown]) -> None:
    from rich.console import Console
    from rich.text import Text

    from loongforge.data.show.terminal import legend, sample_text
    from loongforge.data.visible import visible

    coloured = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    console = Console(highlight=False, soft_wrap=not coloured)
    for shown in samples:
        console.print(Text(f"--- {shown.position}: {visible(str(shown.location))}", style="dim"))
        if shown.preview is None:
            console.print(Text(f"bad sample: {visible(shown.problem)}", style="red"))
            continue
        console.print(sample_text(shown.preview, coloured=coloured))
        found = shown.preview
        sizes = ", ".join(f"{pixels.shape[1]} x {pixels.shape[0]}" for pixels in found.pixels)
        images = f"; {len(found.units)} images, seen as {sizes}" if found.pixels else ""
        console.print(Text(f"{found.num_tokens} tokens, {found.num_learned} learned{images}", style="dim"))
    console.print(Text(legend(coloured=coloured), style="dim"))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--html {path} cannot be written: {error.strerror or error}") from error
