"""`loongforge backends verify`: the conformance suite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loongforge.cli.parser import Parser
from loongforge.config.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from loongforge.training.conformance.outcome import StageResult

_EXAMPLES = """
  loongforge backends verify
  loongforge backends verify --backend cuda --nproc 8 --out report.json
  loongforge backends verify --only ops --inject grad:rms_norm      # must fail"""

_FAULTS = "op:OP, grad:OP, arithmetic, memory, timer, random, collective, curve, checkpoint, hang:STAGE, crash:STAGE"


def run(argv: Sequence[str]) -> int:
    """Verifies; exit code 1 unless everything passed."""
    from loongforge.training.conformance.stages import STAGES

    about = "\n".join(f"  {stage.name:<18}{stage.about}" for stage in STAGES)
    parser = Parser(
        "backends verify",
        "Checks that a backend computes what it promises, each stage in processes of its own with a time limit:\n"
        f"{about}\n"
        "A stage that is left out is no pass. A report that passes makes the kernels 'measured' on this machine.",
        _EXAMPLES,
    )
    parser.add_argument("--backend", default="auto", metavar="NAME", help="default: what backend=auto takes")
    parser.add_argument("--nproc", type=int, metavar="N", help="processes of the collectives (default: all devices)")
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="leave out the others")
    parser.add_argument("--out", metavar="FILE", help="write the report, as JSON")
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds for each stage in place of its own limit")
    parser.add_argument("--inject", default="", metavar="FAULT", help=f"plant a fault, to see it found: {_FAULTS}")
    parser.add_argument("--json", action="store_true", help="print the report, and nothing else")
    args = parser.parse(argv)
    _check(args.only, args.inject, [stage.name for stage in STAGES])
    for name in ("nproc", "timeout"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise UserError(f"--{name} {getattr(args, name)} must be greater than 0")
    from loongforge.kernels.backend import select
    from loongforge.training.conformance.run import verify

    backend = select(args.backend)
    count = backend.device_count()
    nproc = args.nproc or (2 if count == 1 and backend.shared_device else count)
    if not args.json and backend.detect().state == "emulated":
        print(f"EMULATED {backend.title.upper()}: contract check only, nothing here runs on its hardware")
    report = verify(
        backend,
        nproc=nproc,
        only=args.only,
        fault=args.inject,
        limit=args.timeout,
        tell=(lambda result: None) if args.json else _show,
    )
    if args.out:
        Path(args.out).write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(json.dumps(report) if args.json else f"{backend.title}: {report['outcome']}")
    return 0 if report["outcome"] == "pass" else 1


def _check(only: Sequence[str], fault: str, stages: Sequence[str]) -> None:
    from loongforge.kernels.ops import OPS

    for name in only:
        if name not in stages:
            raise UserError(f"--only {name}: no such stage.{did_you_mean(name, stages)} Stages: {', '.join(stages)}")
    kinds = {"op": OPS, "grad": OPS, "hang": stages, "crash": stages}
    kind, colon, where = fault.partition(":")
    plain = ("", "arithmetic", "memory", "timer", "random", "collective", "curve", "checkpoint")
    if (not colon and kind not in plain) or (colon and where not in kinds.get(kind, ())):
        raise UserError(f"--inject {fault}: no such fault. Faults: {_FAULTS}; stages: {', '.join(stages)}")


def _show(result: StageResult) -> None:
    good = sum(check.ok for check in result.checks)
    counted = f"{good} of {len(result.checks)} checks" if result.checks else result.message
    print(f"{result.stage:<18}{result.outcome:<9}{result.seconds:6.1f} s  {counted}", flush=True)
    for check in result.checks:
        figure = "" if check.figure is None else f" {check.figure:.2e}"
        limit = "" if check.limit is None else f", at most {check.limit:.2e}"
        if not check.ok:
            print(f"    {check.name}:{figure}{limit} {check.note}")
        elif len(result.checks) <= 4:
            print(f"    {check.name}:{figure}{limit}")
