"""`loongforge data check`: reads everything that a run would read, and says what is wrong with it."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loongforge.cli.parser import Parser, check_least
from loongforge.cli.progress import bar
from loongforge.config.errors import UserError

if TYPE_CHECKING:
    from loongforge.config.schema import Config
    from loongforge.data.check.report import Outlook
    from loongforge.data.check.run import CheckedSet, Spec
    from loongforge.data.processing import SampleProcessor

_EXAMPLES = """
  loongforge data check +recipe=llava_sft
  loongforge data check +recipe=llava_sft --samples 1000 --json
  loongforge data check data/digits_vqa/val-00000.tar --tokenizer data/digits_vqa/tokenizer --image-tokens 4"""


def run(argv: Sequence[str]) -> int:
    """Checks data; returns the exit code: 1 where there are problems."""
    args = _parse(argv)
    if args.path is None:
        from loongforge.cli.recipe_args import load_recipe

        return _check_recipe(load_recipe(args).config, args)
    return _check_path(args)


def _parse(argv: Sequence[str]) -> Namespace:
    from loongforge.cli import recipe_args

    parser = Parser(
        "data check",
        "Reads everything that a run would read, as it would, and says what is wrong with it.\n"
        "Exit code: 0 no problems (there may be warnings), 1 problems, 2 wrong arguments.",
        _EXAMPLES,
    )
    recipe_args.add_overrides(parser)
    parser.add_argument("--samples", type=int, metavar="N", help="at most so many of each set, evenly spread")
    parser.add_argument("--workers", type=int, metavar="W", help="processes (default: one for each core)")
    parser.add_argument("--examples", type=int, default=3, metavar="N", help="samples named per problem (default: 3)")
    parser.add_argument("--pack-tokens", type=int, metavar="N", help="pack to this budget (default: a micro-batch)")
    parser.add_argument("--strict", action="store_true", help="exit code 1 for warnings, too")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--tokenizer", metavar="DIR", help="check a path in place of a recipe's data, with this one")
    parser.add_argument("--image-tokens", type=int, default=576, metavar="N", help="of an image, with --tokenizer")
    parser.add_argument("--max-length", type=int, metavar="N", help="longest sample in tokens, with --tokenizer")
    args = parser.parse(argv)
    check_least(args, samples=1, workers=1, examples=0, pack_tokens=1, image_tokens=1, max_length=2)
    paths = [text for text in args.overrides if "=" not in text]
    if len(paths) > 1 or bool(paths) != bool(args.tokenizer) or (paths and len(args.overrides) > 1):
        raise UserError("data check takes a recipe (+recipe=NAME key=value ...), or one PATH with --tokenizer DIR")
    args.path = paths[0] if paths else None
    return args


def _check_recipe(config: Config, args: Namespace) -> int:
    from loongforge.cli.data_recipe import recipe_processor
    from loongforge.data.check.run import open_sets

    processor = recipe_processor(config)
    specs: dict[str, Spec] = {"train": config.data.train}
    if config.data.eval is not None:
        specs["eval"] = config.data.eval
    sets = open_sets(specs, samples=args.samples, image_dir=config.data.image_dir, index_dir=config.data.index_dir)
    return _check(sets, processor, args, config)


def _check_path(args: Namespace) -> int:
    from loongforge.data.check.run import open_sets
    from loongforge.data.images import ImageProcessor
    from loongforge.data.processing import SampleProcessor
    from loongforge.data.tokenizer import load_tokenizer

    processor = SampleProcessor(
        load_tokenizer(args.tokenizer),
        max_length=args.max_length or sys.maxsize,
        num_image_tokens=args.image_tokens,
        image_processor=ImageProcessor(224, [0.5] * 3, [0.5] * 3),
    )
    return _check(open_sets({"train": args.path}, samples=args.samples), processor, args, None)


def _check(sets: list[CheckedSet], processor: SampleProcessor, args: Namespace, config: Config | None) -> int:
    from loongforge.data.check.report import Pace, as_json, as_text
    from loongforge.data.check.run import check
    from loongforge.data.workers import default_workers

    workers = args.workers or default_workers()
    began = time.perf_counter()
    checked = check(sets, processor, workers=workers, examples=args.examples, watch=bar("check"))
    pace = Pace(time.perf_counter() - began, workers)
    report = as_json(checked, _outlook(checked.sets[0], config, args), pace)
    print(json.dumps(report) if args.json else as_text(report))
    return 1 if report["problems"] or (args.strict and report["warnings"]) else 0


def _outlook(train: CheckedSet, config: Config | None, args: Namespace) -> Outlook:
    from loongforge.data.check.outlook import packing, padded_share
    from loongforge.data.check.report import Outlook

    budget, share = args.pack_tokens, None
    if config is not None:
        from loongforge.cli.data_recipe import batch_shape, recipe_layout
        from loongforge.model.checks import micro_batch_tokens

        layout = recipe_layout(config)
        if layout is not None:
            budget = budget or micro_batch_tokens(config, layout)
            shape = batch_shape(config, layout)
            share = padded_share(train.lengths_by_source, train.opened.weights, shape) if shape is not None else None
    return Outlook(share, packing(train.lengths, budget) if budget else None)
