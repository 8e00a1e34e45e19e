"""`loongforge eval`: scores a trained model on held-out data."""

from __future__ import annotations

from collections.abc import Sequence

from loongforge.cli.parser import Parser

_EXAMPLES = """
  loongforge eval --checkpoint runs/llava_sft/TIME
  loongforge eval --checkpoint runs/llava_sft/TIME/checkpoints/step_00000400 --data my.jsonl --json
  loongforge eval --checkpoint runs/llava_sft/TIME launcher.nproc=2 model.llm.parallel.tp=2"""


def run(argv: Sequence[str]) -> int:
    """Scores; returns the exit code."""
    from loongforge.cli.checkpoints import add_checkpoint_options, checkpoint_config, run_on_checkpoint

    parser = Parser("eval", "Scores a trained model: loss and exact match on held-out data.", _EXAMPLES)
    add_checkpoint_options(parser)
    parser.add_argument("--json", action="store_true", help="a line per sample, for machines")
    parser.add_argument("--data", metavar="FILE", help="JSONL or shards; default: the recipe's data.eval")
    args = parser.parse(argv)
    entry = "loongforge.inference.commands:evaluate"
    config = checkpoint_config(args)
    return run_on_checkpoint(entry, config, checkpoint=args.checkpoint, data=args.data, as_json=args.json)
