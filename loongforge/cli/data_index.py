"""`loongforge data index`: writes where every sample lies and what it holds, once."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loongforge.cli.parser import Parser, check_least
from loongforge.cli.progress import bar
from loongforge.config.errors import UserError

if TYPE_CHECKING:
    from loongforge.config.schema import Config, SourceConfig
    from loongforge.data.indexing import Indexed

_EXAMPLES = """
  loongforge data index +recipe=llava_sft
  loongforge data index +recipe=mine data.train='shards/train-{000..099}.tar' data.index_dir=index --workers 16
  loongforge data index +recipe=mine --decode             decodes every image, so that each bad sample is known
  loongforge data index shards/train-000.tar more.jsonl   without a recipe: only where samples lie"""


def run(argv: Sequence[str]) -> int:
    """Writes index files; returns the exit code."""
    from loongforge.cli import recipe_args
    from loongforge.data.workers import default_workers

    parser = Parser(
        "data index",
        "Writes an index beside each data file (or in data.index_dir): where its samples lie, and of each the tokens,\n"
        "image sizes and problems, so that runs and plans need not find out. Files whose index fits are left alone.",
        _EXAMPLES,
    )
    recipe_args.add_overrides(parser)
    parser.add_argument("--decode", action="store_true", help="decode all images instead of reading their headers")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    parser.add_argument("--anew", action="store_true", help="write every index, also where one fits")
    args = parser.parse(argv)
    check_least(args, workers=1)
    args.workers = args.workers or default_workers()
    paths = [argument for argument in args.overrides if "=" not in argument]
    args.overrides = [argument for argument in args.overrides if "=" in argument]
    if not args.overrides:
        return _positions(paths, args)
    config = recipe_args.load_recipe(args).config
    return _index(config, _specs(config, paths), args)


def _positions(paths: list[str], args: Namespace) -> int:
    from loongforge.data.indexing import index_positions

    if not paths:
        raise UserError("loongforge data index needs a recipe (+recipe=NAME), or paths (see its --help)")
    for path in paths:
        files = index_positions(path, "path", index_dir=None, workers=args.workers)
        print(f"{path}: {files} files; where their samples lie is known. Tokens and images need a recipe (+recipe=...)")
    return 0


def _specs(config: Config, paths: list[str]) -> dict[str, str | list[SourceConfig]]:
    if paths:
        return {f"path {number}": path for number, path in enumerate(paths, start=1)}
    specs = {"data.train": config.data.train, "data.eval": config.data.eval}
    return {key: spec for key, spec in specs.items() if spec is not None}


def _index(config: Config, specs: dict[str, str | list[SourceConfig]], args: Namespace) -> int:
    from loongforge.cli.data_recipe import recipe_processor
    from loongforge.data.indexing import MetadataIndexer, index_positions
    from loongforge.data.sources import open_sources

    data, processor = config.data, recipe_processor(config)
    for key, spec in specs.items():
        for pattern in [spec] if isinstance(spec, str) else [source.path for source in spec]:
            index_positions(pattern, key, index_dir=data.index_dir, workers=args.workers)
        sources = [source for source, _ in open_sources(spec, key, data.image_dir, data.index_dir)]
        indexer = MetadataIndexer(sources, processor, decode=args.decode, index_dir=data.index_dir)
        for report in indexer.run(args.workers, bar(key), anew=args.anew):
            _print(key, report)
    return 0


def _print(key: str, report: Indexed) -> None:
    for note in report.notes:
        print(f"{note}: made anew")
    print(
        f"{key} {report.name}: {report.samples} samples in {report.files} files ({report.written} indexed now), "
        f"{report.text_tokens} text tokens, {report.label_tokens} label tokens, {report.images} images, "
        f"{report.bad} bad samples"
    )
    if report.bad:
        print(f"  the first bad sample: {report.first_bad}")
