"""`loongforge chat`: a conversation with a trained model."""

from __future__ import annotations

from collections.abc import Sequence

from loongforge.cli.parser import Parser

_EXAMPLES = """
  loongforge chat --checkpoint runs/llava_sft/TIME
  loongforge chat --checkpoint runs/llava_sft/TIME --temperature 0.7 --top-p 0.9
  printf '/image digits.png\\nWhat is the sum of the digits?\\n' | loongforge chat --checkpoint runs/llava_sft/TIME"""


def run(argv: Sequence[str]) -> int:
    """Talks; returns the exit code."""
    from loongforge.cli.checkpoints import (
        add_checkpoint_options,
        add_sampling_options,
        checkpoint_config,
        run_on_checkpoint,
        sampling_arguments,
    )

    parser = Parser("chat", "Keeps a conversation with a trained model about images (/help lists commands).", _EXAMPLES)
    add_checkpoint_options(parser)
    add_sampling_options(parser)
    args = parser.parse(argv)
    config = checkpoint_config(args)
    entry = "loongforge.inference.chat:chat"
    return run_on_checkpoint(entry, config, checkpoint=args.checkpoint, **sampling_arguments(args, config))
