"""argparse with our manners: closest matches, errors as `UserError`, options and overrides in any order."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from loongforge.config.errors import UserError, did_you_mean


class Parser(argparse.ArgumentParser):
    """A verb's parser.

    Args:
        verb: As typed, e.g. `data build`.
        summary: One sentence.
        examples: Whole commands, one per line.
    """

    def __init__(self, verb: str, summary: str, examples: str) -> None:
        super().__init__(
            prog=f"loongforge {verb}",
            description=summary,
            epilog=f"examples:\n{examples.rstrip()}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of an input error as well")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parses all of `argv`.

        Raises:
            UserError: an unknown option, a missing argument, a value that is not allowed.
        """
        parsed, unknown = self.parse_known_intermixed_args(argv)
        if unknown:
            known = [option for option in self._option_string_actions if option.startswith("--")]
            flag = unknown[0].partition("=")[0]
            hint = did_you_mean(flag, self._option_string_actions)
            raise UserError(f"{self.prog}: unknown option '{unknown[0]}'.{hint} Options: {', '.join(known)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """argparse's own errors."""
        raise UserError(f"{self.prog}: {message} (see {self.prog} --help)")


def check_least(args: argparse.Namespace, **least: int) -> None:
    """Refuses options below their least value; those that are None were not given.

    Raises:
        UserError: it names the option.
    """
    for name, low in least.items():
        value = getattr(args, name)
        if value is not None and not low <= value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} {value} must be at least {low}")


def pick(verb: str, argv: Sequence[str], subverbs: dict[str, str]) -> tuple[str, list[str]]:
    """The sub-verb and the rest of the arguments; prints the list and exits for `--help`.

    Raises:
        UserError: no or an unknown sub-verb.
    """
    listing = "\n".join(f"  {name:<8}{summary}" for name, summary in subverbs.items())
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: loongforge {verb} VERB [options]\n\n{listing}\n\nloongforge {verb} VERB --help shows examples")
        raise SystemExit(0)
    if not argv or argv[0] not in subverbs:
        given = f"'{argv[0]}' is not one of them.{did_you_mean(argv[0], subverbs)} " if argv else ""
        raise UserError(f"loongforge {verb} needs a verb. {given}Allowed: {', '.join(subverbs)}")
    return argv[0], list(argv[1:])
