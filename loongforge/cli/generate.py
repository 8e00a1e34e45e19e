"""`loongforge generate`: asks a trained model about images."""

from __future__ import annotations

from collections.abc import Sequence

from loongforge.cli.parser import Parser

_EXAMPLES = """
  loongforge generate --checkpoint runs/llava_sft/TIME --image digits.png --prompt "What is the sum of the digits?"
  loongforge generate --checkpoint runs/llava_sft/TIME --image a.png --image b.png --prompt "<image> and <image>: ..."
  loongforge generate --checkpoint runs/llm_pretrain/TIME --prompt "The import statement" --max-new-tokens 64 --json"""


def run(argv: Sequence[str]) -> int:
    """Generates an answer; returns the exit code."""
    from loongforge.cli.checkpoints import add_checkpoint_options, checkpoint_config, run_on_checkpoint

    parser = Parser("generate", "Asks a trained model about images, or lets it continue a text.", _EXAMPLES)
    add_checkpoint_options(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="<image> marks where an image goes; else first")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="repeatable")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="default: the recipe's trainer.max_new_tokens")
    args = parser.parse(argv)
    if args.max_new_tokens is not None:
        args.overrides.append(f"trainer.max_new_tokens={args.max_new_tokens}")
    config = checkpoint_config(args)
    return run_on_checkpoint(
        "loongforge.inference.commands:generate",
        config,
        checkpoint=args.checkpoint,
        images=args.image,
        prompt=args.prompt,
        max_new_tokens=config.trainer.max_new_tokens,
        as_json=args.json,
    )
