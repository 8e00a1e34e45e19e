"""`loongforge generate`: asks a trained model about images."""

from __future__ import annotations

from collections.abc import Sequence

from loongforge.cli.parser import Parser
from loongforge.config.errors import UserError

_EXAMPLES = """
  loongforge generate --checkpoint runs/llava_sft/TIME --image digits.png --prompt "What is the sum of the digits?"
  loongforge generate --checkpoint runs/llava_sft/TIME --image a.png --image b.png --prompt "<image> and <image>: ..."
  loongforge generate --checkpoint runs/llava_sft/TIME --data questions.jsonl --json launcher.nproc=2
  loongforge generate --checkpoint runs/llm_pretrain/TIME --prompt "The import statement" --temperature 0.8"""


def run(argv: Sequence[str]) -> int:
    """Generates answers; returns the exit code."""
    from loongforge.cli.checkpoints import (
        add_checkpoint_options,
        add_sampling_options,
        checkpoint_config,
        run_on_checkpoint,
        sampling_arguments,
    )

    parser = Parser("generate", "Asks a trained model about images, or lets it continue a text.", _EXAMPLES)
    add_checkpoint_options(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="<image> marks where an image goes; else images come first")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="repeatable")
    parser.add_argument("--data", metavar="FILE", help="JSONL of prompts: samples, or {prompt, images}")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="prompts of --data at once (8)")
    add_sampling_options(parser)
    parser.add_argument("--json", action="store_true", help="an object per answer, for machines")
    args = parser.parse(argv)
    if (args.prompt is None) == (args.data is None):
        raise UserError("loongforge generate: give either --prompt TEXT or --data FILE (see --help)")
    if args.data is not None and args.image:
        raise UserError("loongforge generate: --image goes with --prompt; lines of --data name their own images")
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: allowed: 1 or more")
    config = checkpoint_config(args)
    return run_on_checkpoint(
        "loongforge.inference.commands:generate",
        config,
        checkpoint=args.checkpoint,
        prompt=args.prompt,
        images=args.image,
        data=args.data,
        batch_size=args.batch_size,
        as_json=args.json,
        **sampling_arguments(args, config),
    )
