"""Training of a whole VLM: our packed step against plain loops over transformers' LLaVA, on the same samples.

Both sides have the same sizes, the same first weights (the run ends with an error where their first losses differ),
AdamW, clipping and frozen parts, and train in alternating blocks of one run, which end when the device is idle. Theirs:
rows padded to the longest, and rows of documents with positions that restart, with SDPA and, where it is installed,
flash-attention; weights and AdamW's state in the precision of the run (ours keeps float32 copies of bf16). Ours moves
to the host while they have their turns (not timed), and a pass of theirs that does not fit into memory is halved.

    python scripts/bench/gpu_vlm.py --size 1.5b                     a GPU with 80 GB
    python scripts/bench/gpu_vlm.py --size tiny --backend cpu       anywhere

MFU: FLOPs of the model as every training step of ours counts them (loongforge/model/work.py: gradients only where a
frozen part needs them; attention within documents; nothing for padding or recomputation) over time and the device's
peak. `mfu` counts the output layer at positions with a label, which is what the loss needs; `mfu_all_positions` at all,
as is usual elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loongforge.components.llm.base import LLMConfig
from loongforge.components.projector.base import ProjectorConfig
from loongforge.components.registry import typed_config
from loongforge.components.vision.base import VisionConfig
from loongforge.config.compose import compose
from loongforge.config.schema import Config
from loongforge.kernels.backend import Backend, select
from loongforge.model.flops import image_tokens

SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(vision="clip_vit_tiny", llm="qwen2_tiny", row=128, text=20, samples=12),
    "1b": dict(vision="siglip_so400m_14_384", llm="llama3_2_1b", row=8192, text=300, samples=32),
    "1.5b": dict(vision="clip_vit_l14_336", llm="qwen2_5_1_5b", row=8192, text=300, samples=32),
}
"""Config groups; tokens of a row at most; median of a sample's text; samples of a step."""
IMAGES = {1: 0.55, 2: 0.25, 3: 0.12, 4: 0.08}
"""Images of a sample, and how often."""
GOAL = {"mfu": 0.5, "ratio": 1.5}
_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}  # of first losses, of which an untrained model has about log(vocabulary)


def make_config(args: argparse.Namespace) -> Config:
    """The recipe; data sections are never read."""
    sizes = SIZES[args.size]
    frozen = [f"model.{name}.freeze=true" for name in args.frozen]
    return typed_config(
        compose(
            [
                "+recipe=llava_sft",
                *(f"{group}={sizes[group]}" for group in ("vision", "llm")),
                f"trainer.precision={args.precision}",
                f"trainer.recompute={'full' if args.recompute else 'none'}",
                "optimizer.lr=1e-5",
                "optimizer.weight_decay=0.0",
                *frozen,
                *args.overrides,
            ]
        ).tree
    )


def draw_steps(config: Config, args: argparse.Namespace) -> list[list[Any]]:
    """The samples of each step: one to four images between lognormal text, none longer than a row."""
    from rows import draw_sample

    vision, llm = config.model.vision, config.model.llm
    assert isinstance(vision, VisionConfig) and isinstance(llm, LLMConfig)
    draw, tokens, median = np.random.default_rng(args.seed), image_tokens(config.model), SIZES[args.size]["text"]
    sizes = dict(image_tokens=tokens, image_size=vision.image_size, vocab_size=llm.vocab_size)

    def one() -> Any:
        images = int(draw.choice(list(IMAGES), p=list(IMAGES.values())))
        text = int(np.clip(draw.lognormal(np.log(median), 0.8), 8, args.row - images * tokens))
        return draw_sample(draw, text=text, images=images, **sizes)

    return [[one() for _ in range(args.samples)] for _ in range(args.steps)]


def flops_of(config: Config, samples: Sequence[Any]) -> tuple[float, float]:
    """Of a step, with the output layer at positions with a label, and at all."""
    from rows import IMAGE_TOKEN, packed_batch

    from loongforge.components.products import COUNTS
    from loongforge.model.work import FlopCounter, count_work

    batch, counter = packed_batch(samples), FlopCounter(config, {})
    counts = dict(zip(COUNTS, count_work([batch], [batch.lengths], config.model, IMAGE_TOKEN), strict=True))
    every = counts | {"labels": counts["tokens"]}
    needed, usual = (sum(part.model for part in counter.step(one).values()) for one in (counts, every))
    return needed, usual


def make_sides(config: Config, args: argparse.Namespace, backend: Backend, steps: list[list[Any]]) -> dict[str, Any]:
    """By name; ours first."""
    import torch
    from rows import rows_of
    from vlm_sides import OurSide, PlainSide, attention_kinds, plain_model, save_model

    from loongforge.parallel.groups import make_groups
    from loongforge.parallel.layout import Layout

    torch.manual_seed(args.seed)
    backend.seed(args.seed)
    model = plain_model(config, backend)
    rows = [rows_of(samples, args.row) for samples in steps]
    each = -(-args.samples // max(len(some) for some in rows))
    chunks = [[samples[first : first + each] for first in range(0, args.samples, each)] for samples in steps]
    with tempfile.TemporaryDirectory(prefix="bench-weights-") as folder:
        save_model(model, config, Path(folder))
        groups = make_groups(Layout.from_model(config.model, 1), backend.dist_backend)
        sides: dict[str, Any] = {"ours": OurSide(config, groups, rows, Path(folder))}
    trained = [param for param in model.parameters() if param.requires_grad]
    betas = (config.optimizer.betas[0], config.optimizer.betas[1])
    optimizer = torch.optim.AdamW(trained, lr=config.optimizer.lr, betas=betas, weight_decay=0.0, fused=True)
    for attention in attention_kinds():
        for name, passes in (("padded", chunks), ("packed", rows)):
            sides[f"transformers, {attention}, {name}"] = PlainSide(
                model,
                optimizer,
                attention=attention,
                steps=passes,
                packed=name == "packed",
                device=backend.device(),
            )
    return sides


def first_losses(sides: Mapping[str, Any], precision: str) -> dict[str, float]:
    """Of each side at the same weights.

    Raises:
        SystemExit: they differ, so that the sides do not compute the same.
    """
    losses = {}
    for name, side in sides.items():
        with side.turn():
            losses[name] = side.loss()
    apart = max(losses.values()) - min(losses.values())
    if not apart <= _TOLERANCE[precision]:
        sys.exit(f"the sides do not train the same model: their first losses are {losses}")
    return losses


def timed_blocks(
    sides: Mapping[str, Any], backend: Backend, *, blocks: int, steps: int, note: Callable[[str], None]
) -> dict[str, list[float]]:
    """Seconds of each side's blocks of all steps, without the first, which warms up; each goes first in turn."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for block in range(blocks + 1):
        turn = block % len(names)
        for name in [*names[turn:], *names[:turn]]:
            with sides[name].turn(), backend.timer() as clock:
                for number in range(steps):
                    sides[name].step(number)
            if block:
                times[name].append(clock.seconds)
            note(f"block {block} of {blocks}: {name}: {clock.seconds:.2f} s")
    return times


def figures(
    config: Config, args: argparse.Namespace, steps: list[list[Any]], times: dict[str, list[float]], peak: float | None
) -> dict[str, Any]:
    """Of each side, and ours over each of theirs block by block."""
    number = args.samples * args.steps
    needed, usual = (sum(parts) for parts in zip(*(flops_of(config, samples) for samples in steps), strict=True))
    sides: dict[str, Any] = {}
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        sides[name] = {
            "samples_per_s": number / middle,
            "tflops": needed / middle / 1e12,
            "mfu": needed / middle / peak if peak else None,
            "mfu_all_positions": usual / middle / peak if peak else None,
        }
        if name != "ours":
            ratios = [theirs / mine for mine, theirs in zip(times["ours"], seconds, strict=True)]
            sides[name]["ratio"] = dict(median=statistics.median(ratios), min=min(ratios), max=max(ratios))
    return sides


def measure(config: Config, args: argparse.Namespace, backend: Backend) -> dict[str, Any]:
    """Everything that is printed."""
    from loongforge.model.assembly import bind_kernels
    from loongforge.model.flops import num_params

    steps = draw_steps(config, args)
    sides = make_sides(config, args, backend, steps)
    losses = first_losses(sides, args.precision)
    times = timed_blocks(sides, backend, blocks=args.blocks, steps=args.steps, note=_note)
    peak = args.peak_tflops * 1e12 if args.peak_tflops else backend.peak_flops(args.precision)
    found = figures(config, args, steps, times, peak)
    for name, side in sides.items():
        found[name] |= {"first_loss": losses[name], "passes_per_step": side.passes}
    fastest = min((name for name in found if name != "ours"), key=lambda name: found[name]["ratio"]["median"])
    samples = [sample for some in steps for sample in some]
    return {
        "command": " ".join(["python", *sys.argv]),
        "device": list(backend.detect().evidence),
        "versions": {**backend.versions(), **_versions()},
        "kernels": bind_kernels(config.kernels, backend).names(),
        "size": args.size,
        "precision": args.precision,
        "recompute": args.recompute,
        "frozen": args.frozen,
        "parameters": num_params(config.model),
        "row": args.row,
        "mean_tokens": sum(len(sample) for sample in samples) / len(samples),
        "mean_images": sum(len(sample.images) for sample in samples) / len(samples),
        "label_share": sum(sample.label_tokens for sample in samples) / sum(len(sample) for sample in samples),
        "peak_flops": peak,
        "peak_memory_gib": backend.peak_memory_bytes() / 2**30,
        "sides": found,
        "goal": GOAL,
        "fastest_of_theirs": fastest,
        "ratio": found[fastest]["ratio"]["median"],
        "mfu": found["ours"]["mfu"],
    }


def _versions() -> dict[str, str]:
    import transformers

    from loongforge import __version__

    return {"transformers": transformers.__version__, "loongforge": __version__}


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def show(result: dict[str, Any]) -> None:
    """For people."""
    print("\n".join([*result["device"], f"versions: {result['versions']}", f"kernels: {result['kernels']}"]))
    for name, side in result["sides"].items():
        mfu = (
            "  not known"
            if side["mfu"] is None
            else f"{side['mfu']:6.1%} ({side['mfu_all_positions']:.1%} with all logits)"
        )
        ratio = f"   ours is {side['ratio']['median']:.2f} times as fast" if "ratio" in side else ""
        print(f"{name:<40}{side['samples_per_s']:9.2f} samples/s   MFU {mfu}{ratio}")
    print(f"goals: MFU {GOAL['mfu']:.0%}, {GOAL['ratio']} times the fastest of theirs ({result['fastest_of_theirs']})")


def parse() -> argparse.Namespace:
    """The command line; further arguments are overrides of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="1.5b")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", choices=list(_TOLERANCE), default="bf16")
    parser.add_argument("--row", type=int, help="tokens of a packed row at most")
    parser.add_argument("--samples", type=int, help="of a step")
    parser.add_argument("--steps", type=int, default=3, help="of a block")
    parser.add_argument("--blocks", type=int, default=5, help="of each side, after one that warms up")
    parser.add_argument("--frozen", nargs="*", choices=["vision", "projector", "llm"], default=["vision"])
    parser.add_argument("--recompute", action="store_true", help="activations, on all sides")
    parser.add_argument("--peak-tflops", type=float, help="of the device, where its backend does not know it")
    parser.add_argument("--threads", type=int, default=4, help="of the host")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", help="of the recipe, e.g. kernels.attention_varlen=torch_varlen")
    args = parser.parse_args()
    for key in ("row", "samples"):
        setattr(args, key, getattr(args, key) or SIZES[args.size][key])
    return args


def main() -> None:
    """Measures, prints."""
    args = parse()
    os.environ.setdefault(
        "PYTORCH_ALLOC_CONF", "expandable_segments:True"
    )  # sides differ in the sizes of their tensors
    backend = select(args.backend)
    backend.activate()
    backend.set_threads(args.threads)
    config = make_config(args)
    assert isinstance(config.model.projector, ProjectorConfig)
    from loongforge.parallel.session import joined_world

    with joined_world(backend):
        result = measure(config, args, backend)
    print(json.dumps(result)) if args.json else show(result)


if __name__ == "__main__":
    main()
