"""`loongforge backends`: what was found on this machine and why, and which kernels it would use; `verify` proves it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from loongforge.cli.parser import Parser
from loongforge.config.errors import UserError

NOT_STRICT_ENOUGH = 3
"""Exit code of `--strict` where something is unknown, unmeasured or wrong."""

_EXAMPLES = """
  loongforge backends
  loongforge backends --backend cuda --strict
  loongforge backends --json
  loongforge backends verify --nproc 2 --out report.json"""


def run(argv: Sequence[str]) -> int:
    """Lists backends, or verifies one; returns the exit code."""
    if argv and argv[0] == "verify":
        from loongforge.cli import backends_verify

        return backends_verify.run(argv[1:])
    parser = Parser(
        "backends",
        "Shows which backends are installed, what speaks for their devices, and the kernels that each would use.\n"
        "`loongforge backends verify` checks that a backend computes what it promises.",
        _EXAMPLES,
    )
    parser.add_argument("--backend", metavar="NAME", help="only this one")
    parser.add_argument(
        "--strict",
        action="store_true",
        help=f"exit code {NOT_STRICT_ENOUGH} where it has a problem, an unknown capability, an unmeasured kernel",
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    args = parser.parse(argv)
    from loongforge.cli.backends_text import text
    from loongforge.kernels.backend import installed, select
    from loongforge.kernels.report import describe, doubts

    wanted = select(args.backend).name if args.backend else None
    chosen = wanted or _automatic()
    found = [describe(backend, auto=name == chosen) for name, backend in installed().items() if wanted in (None, name)]
    print(json.dumps(found) if args.json else text(found))
    if not args.strict:
        return 0
    open_points = [point for one in found if one["name"] == chosen for point in doubts(one)]
    if not args.json:
        print("\n".join(f"strict: {point}" for point in open_points))
    return NOT_STRICT_ENOUGH if open_points or chosen is None else 0


def _automatic() -> str | None:
    """What `backend=auto` takes; None where it takes none, which the list then explains."""
    from loongforge.kernels.backend import select

    try:
        return select("auto").name
    except UserError:
        return None
