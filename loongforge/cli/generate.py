"""`loongforge generate`: asks a trained model about images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loongforge.cli.parser import Parser
from loongforge.config.errors import UserError

_EXAMPLES = """
  loongforge generate --checkpoint runs/llava_sft/TIME --image digits.png --prompt "What is the sum of the digits?"
  loongforge generate --checkpoint runs/llava_sft/TIME --image a.png --image b.png --prompt "<image> and <image>: ..."
  loongforge generate --checkpoint runs/llm_pretrain/TIME --prompt "The import statement" --max-new-tokens 64 --json"""


def run(argv: Sequence[str]) -> int:
    """Generates an answer; returns the exit code."""
    from loongforge.cli.checkpoints import add_checkpoint_options, run_on_checkpoint

    parser = Parser("generate", "Asks a trained model about images, or lets it continue a text.", _EXAMPLES)
    add_checkpoint_options(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="<image> marks where an image goes; else first")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="repeatable")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="default: the recipe's trainer.max_new_tokens")
    args = parser.parse(argv)
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {args.max_new_tokens} must be at least 1")
    for image in args.image:
        if not Path(image).is_file():
            raise UserError(f"--image {image}: no such file")
    return run_on_checkpoint(
        "loongforge.inference.main:generate",
        args,
        prompt=args.prompt,
        images=[str(Path(image).absolute()) for image in args.image],
        max_new_tokens=args.max_new_tokens,
        as_json=args.json,
    )
