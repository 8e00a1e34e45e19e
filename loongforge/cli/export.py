"""`loongforge export`: writes a folder that transformers loads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from loongforge.cli.parser import Parser

_EXAMPLES = """
  loongforge export --checkpoint runs/llava_sft/TIME --out digits-vlm
  loongforge export --checkpoint runs/llava_sft/TIME/checkpoints/step_00000400 --out digits-vlm --dtype bf16
  loongforge export --checkpoint runs/llava_sft/TIME --out digits-lora --adapter
  loongforge export --checkpoint llava-1.5-7b-hf --out copy --max-shard-size 2GB"""


def run(argv: Sequence[str]) -> int:
    """Exports; returns the exit code."""
    from loongforge.cli.checkpoints import checkpoint_config
    from loongforge.cli.recipe_args import add_overrides

    parser = Parser("export", "Writes a Hugging Face folder from a trained model.", _EXAMPLES)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a run, a checkpoint, or a HF folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--dtype", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="default: as it came, or was trained"
    )
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of a file; default 5GB")
    parser.add_argument(
        "--adapter", action="store_true", help="only what adapters (model.COMPONENT.lora) have learned, for peft"
    )
    add_overrides(parser)
    args: argparse.Namespace = parser.parse(argv)
    config = checkpoint_config(args)
    from loongforge.config.saved import to_tree
    from loongforge.training.job import Job

    if args.adapter:
        places = dict(checkpoint=args.checkpoint, out=args.out)
        return Job("loongforge.inference.export_adapter:export_adapter", to_tree(config), places).run()
    arguments = dict(checkpoint=args.checkpoint, out=args.out, dtype=args.dtype, max_shard_size=args.max_shard_size)
    return Job("loongforge.inference.export:export", to_tree(config), arguments).run()
