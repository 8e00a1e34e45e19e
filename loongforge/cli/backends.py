"""`loongforge backends`: lists the devices that can be used."""

from __future__ import annotations

import json
from collections.abc import Sequence

from loongforge.cli.parser import Parser

_EXAMPLES = """
  loongforge backends
  loongforge backends --json"""


def run(argv: Sequence[str]) -> int:
    """Lists backends; returns the exit code."""
    parser = Parser("backends", "Lists installed backends and whether they have devices here.", _EXAMPLES)
    parser.add_argument("--json", action="store_true", help="for machines")
    args = parser.parse(argv)
    from loongforge.kernels.backend import installed, select

    chosen = select("auto").name
    found = [
        {
            "name": name,
            "available": backend.available(),
            "devices": backend.device_count() if backend.available() else 0,
            "torch_device": backend.torch_device_type,
            "collectives": backend.dist_backend,
            "auto": name == chosen,
        }
        for name, backend in sorted(installed().items())
    ]
    print(json.dumps(found) if args.json else "\n".join(map(_line, found)))
    return 0


def _line(backend: dict[str, object]) -> str:
    state = f"{backend['devices']} device(s)" if backend["available"] else "no device here"
    chosen = "   <- backend=auto" if backend["auto"] else ""
    return f"{backend['name']:<10}{state:<18}{backend['torch_device']}, {backend['collectives']}{chosen}"
