"""`loongforge data pack`: writes the training data anew, as rows that are packed already."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loongforge.cli.parser import Parser, check_least
from loongforge.cli.progress import bar
from loongforge.config.errors import UserError

if TYPE_CHECKING:
    from loongforge.config.schema import Config
    from loongforge.data.offline.job import Job
    from loongforge.data.offline.report import Packed

_EXAMPLES = """
  loongforge data pack +recipe=llava_sft --tokens 1024 --out data/packed
  loongforge data pack +recipe=mine --tokens 4096 --patches 8192 --out packed data.bad_sample=skip --workers 16
  loongforge train +recipe=llava_sft data.train=data/packed packing.enabled=true trainer.micro_batch_tokens=1024"""


def run(argv: Sequence[str]) -> int:
    """Packs data; returns the exit code."""
    from loongforge.cli import recipe_args
    from loongforge.data.workers import default_workers

    parser = Parser(
        "data pack",
        "Writes the training data anew as webdataset shards of packed rows, which training reads one after another:\n"
        "which samples share a row is decided once. What was interrupted goes on where it was.",
        _EXAMPLES,
    )
    recipe_args.add_overrides(parser)
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write; appears when it is complete")
    parser.add_argument("--tokens", type=int, metavar="N", help="of a row at most (default: the recipe's micro-batch)")
    parser.add_argument(
        "--patches", type=int, metavar="N", help="of a row's images at most (default: balance.patch_cap)"
    )
    parser.add_argument("--samples", type=int, metavar="N", help="the first N of the run's order (default: all)")
    parser.add_argument(
        "--window", type=int, default=1 << 16, metavar="N", help="fill rows among so many (%(default)s)"
    )
    parser.add_argument("--shard-rows", type=int, default=1000, metavar="N", help="rows of a shard (%(default)s)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    parser.add_argument("--json", action="store_true", help="for machines")
    args = parser.parse(argv)
    check_least(args, tokens=2, patches=1, samples=1, window=1, shard_rows=1, workers=1)
    from loongforge.data.offline.run import pack_data

    job, out = _job(recipe_args.load_recipe(args).config, args), Path(args.out)
    packed = pack_data(job, out, workers=args.workers or default_workers(), watch=bar("pack"))
    report = _report(packed, job, out)
    print(json.dumps(report) if args.json else _text(report))
    return 0


def _job(config: Config, args: Namespace) -> Job:
    from loongforge.cli.data_recipe import batch_shape, recipe_layout, recipe_processor
    from loongforge.data.offline.budget import Budget
    from loongforge.data.offline.job import make_job
    from loongforge.model.checks import micro_batch_tokens

    layout = recipe_layout(config)
    if args.tokens is None and layout is None:
        raise UserError("the recipe does not fit launcher.nproc, so there is no micro-batch to pack for; give --tokens")
    tokens = args.tokens if layout is None or args.tokens else micro_batch_tokens(config, layout)
    return make_job(
        config.data,
        recipe_processor(config),
        Budget(tokens, args.patches or config.balance.patch_cap),
        seed=config.trainer.seed,
        samples=args.samples,
        window=args.window,
        shard_rows=args.shard_rows,
        shape=batch_shape(config, layout) if layout is not None else None,
    )


def _report(packed: Packed, job: Job, out: Path) -> dict[str, Any]:
    return {
        "out": str(out),
        **asdict(packed),
        "budget": asdict(job.budget),
        "fill": packed.fill(job.budget.tokens),
        "padding_before": packed.padding_before,
    }


def _text(report: dict[str, Any]) -> str:
    samples, rows, tokens = report["samples"], report["rows"], report["budget"]["tokens"]
    lines = [
        f"{samples} samples in {rows} rows of at most {tokens} tokens: {samples / rows:.1f} in each, "
        f"{report['fill']:.1%} full",
        f"{report['shards']} shards, {report['size'] / 2**20:.1f} MiB, in {report['out']}",
    ]
    if report["padding_before"] is not None:
        lines.append(
            f"padding: {1 - report['fill']:.1%} of all tokens in rows of equal length, none in rows as they are; "
            f"{report['padding_before']:.1%} in the recipe's padded micro-batches"
        )
    if report["left_out"]:
        lines.append(f"left out: {report['left_out']} samples, listed in {report['out']}/quarantine.jsonl")
    lines.append(
        f"train on it with data.train={report['out']} packing.enabled=true trainer.micro_batch_tokens={tokens}; "
        "trainer.global_batch_size then counts rows"
    )
    return "\n".join(lines)
