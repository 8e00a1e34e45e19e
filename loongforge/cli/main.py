"""Entry point: finds the verb, turns errors into messages and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from loongforge import __version__
from loongforge.config.errors import RunError, UserError, did_you_mean

VERBS = {
    "train": "train the model of a recipe",
    "launch": "start a run on several nodes: Slurm, Kubernetes, torchrun",
    "preflight": "check the nodes of a cluster before a run",
    "plan": "check a recipe and count its parameters and FLOPs; no weights, no GPU",
    "verify": "prove that a layout trains as one process does",
    "eval": "score a trained model on held-out data",
    "generate": "ask a trained model about images",
    "export": "write a trained model as a folder that transformers loads",
    "chat": "talk with a trained model about images",
    "data": "build the embedded data sets; index, check and show data",
    "recipes": "list, show and copy recipes",
    "components": "list what a model can be made of",
    "config": "show a recipe as it is composed",
    "backends": "list the devices that can be used",
}

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


def _help() -> str:
    verbs = "\n".join(f"  {verb:<12}{summary}" for verb, summary in VERBS.items())
    return f"""\
usage: loongforge VERB [options] [key=value ...]

A config-driven, modular, multimodal training engine on megatron-core.

verbs:
{verbs}

options:
  --help      this text; after a verb: the verb's
  --version   the version
  --debug     show the traceback of an input error as well

examples:
  loongforge train +recipe=llava_sft
  loongforge train +recipe=llava_sft launcher.nproc=4 model.llm.parallel.tp=2
  loongforge train -m +recipe=llava_sft optimizer.lr=3e-4,5e-4
  loongforge plan +recipe=llava_sft llm=qwen3_tiny
  loongforge generate --checkpoint runs/llava_sft/TIME --image digits.png --prompt "What is the sum of the digits?"

exit codes: 0 done, 1 failed while running, 2 wrong input, 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: Without the program's name; None: the process's.

    Returns:
        Exit code: 0 done, 1 failed while running, 2 the input is wrong, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        return _dispatch([argument for argument in arguments if argument != "--debug"])
    except (UserError, RunError) as error:
        if debug:
            traceback.print_exc()
        print(f"loongforge: {error}", file=sys.stderr)
        return WRONG_INPUT if isinstance(error, UserError) else FAILED
    except KeyboardInterrupt:
        print("loongforge: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `loongforge ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except SystemExit as request:  # argparse after --help
        return request.code if isinstance(request.code, int) else DONE
    except Exception:
        traceback.print_exc()
        return FAILED


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return DONE if arguments else WRONG_INPUT
    verb, *rest = arguments
    if verb == "--version":
        print(f"loongforge {__version__}")
        return DONE
    if verb not in VERBS:
        known = ", ".join(VERBS)
        raise UserError(f"'{verb}' is not a verb.{did_you_mean(verb, VERBS)} Verbs: {known}. See loongforge --help.")
    run = importlib.import_module(f"loongforge.cli.{verb}").run
    result: int = run(rest)
    return result


if __name__ == "__main__":
    sys.exit(main())
