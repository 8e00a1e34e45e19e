"""Where the encoder should live: step time of four layouts of a ViT-heavy recipe, measured and predicted.

Trains the recipe llava_sft with an encoder that costs about as much as its LLM, on 4 CPU processes of one thread, and
sets the measured step times beside those that `loongforge plan` predicts for this machine. The layouts take turns, so
that a busy machine slows all. Then the same four are predicted for a 7 B model on 8 GPUs.

    python scripts/bench/layouts.py [--steps 12] [--rounds 3] [--samples 32] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from command import run, train

NPROC = 4
SIZES = [
    *("+recipe=llava_sft", f"launcher.nproc={NPROC}", "trainer.threads=1"),
    *("trainer.micro_batch_size=2", "trainer.eval_samples=8", "trainer.sanity_samples=0", "trainer.generate_samples=0"),
    *(
        "model.vision.patch_size=4",
        "model.vision.num_layers=6",
        "logging.tensorboard=false",
        "model.llm.max_seq_len=256",
        "data.max_length=256",
    ),
]
STAGES = ["model.llm.parallel.tp=2", "model.llm.parallel.pp=2", "model.llm.parallel.ranks=0-3"]
LAYOUTS = {
    "uniform": [*STAGES, "model.vision.parallel.tp=2", "model.vision.parallel.ranks=[0,1]"],
    "heterogeneous": [*STAGES, "model.vision.parallel.tp=1", "model.vision.parallel.ranks=[0,1]"],
    "full heterogeneous": [*STAGES, "model.vision.parallel.tp=1", "model.vision.parallel.ranks=0-3"],
    "decoupled": ["model.llm.parallel.tp=2", "model.vision.parallel.ranks=[2,3]"],
}
"""Uniform: the encoder on the LLM's first stage with its TP. Heterogeneous: TP 1 there. Full: on all ranks."""

LARGE = [
    *("+recipe=llava_1_5_7b", "data.train=x", "data.tokenizer=y", "llm=qwen2_5_7b", "data.max_length=4096"),
    *("model.vision.hidden_size=1280", "model.vision.num_layers=97", "model.vision.num_heads=16"),
    *("model.vision.mlp_hidden_size=5120", "model.vision.image_size=896", "model.vision.patch_size=28"),
    *("model.vision.freeze=false", "trainer.recompute=none", "trainer.global_batch_size=96"),
]
"""Qwen2.5-VL-7B: its ViT sees four patches for each LLM token, which three times its 32 layers stand for here."""
_LARGE_STAGES = ["model.llm.parallel.tp=4", "model.llm.parallel.pp=2", "model.llm.parallel.ranks=0-7"]
LARGE_LAYOUTS = {
    "uniform": [*_LARGE_STAGES, "model.vision.parallel.tp=4", "model.vision.parallel.ranks=0-3"],
    "heterogeneous": [*_LARGE_STAGES, "model.vision.parallel.tp=1", "model.vision.parallel.ranks=0-3"],
    "full heterogeneous": [*_LARGE_STAGES, "model.vision.parallel.tp=1", "model.vision.parallel.ranks=0-7"],
    "decoupled": ["model.llm.parallel.tp=2", "model.llm.parallel.pp=2", "model.vision.parallel.ranks=[4,5,6,7]"],
}
_LARGE_DEVICE = ["--world", "8", "--device", "a800", "--images-per-sample", "3.2"]


def measure(folder: Path, overrides: list[str], steps: int) -> tuple[float, float]:
    """Median seconds of a step, and mean tokens of a sample."""
    records = train(folder / "run", [*overrides, f"data.dir={folder / 'data'}"], steps)
    seconds = statistics.median(record["step_time_s"] for record in records)
    return seconds, statistics.mean(record["tokens"] / record["samples"] for record in records)


def predicted(sizes: list[str], overrides: list[str], *options: str) -> float:
    """Seconds of a step that `plan` predicts."""
    return float(json.loads(run("plan", *sizes, *overrides, *options, "--json"))["step"]["seconds"])


def measured_layouts(steps: int, rounds: int, samples: int) -> dict[str, Any]:
    """Measured and predicted step times of the small recipe, by layout."""
    times: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    sizes = [*SIZES, f"trainer.global_batch_size={samples}"]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, overrides in LAYOUTS.items():
                seconds, tokens = measure(Path(folder), [*sizes, *overrides], steps)
                times[name].append(seconds)
    mean = ["--tokens-per-sample", str(round(tokens))]
    model = {name: predicted(sizes, overrides, *mean) for name, overrides in LAYOUTS.items()}
    first_time, first_model = statistics.median(times["uniform"]), model["uniform"]
    return {
        name: {
            "measured_s": statistics.median(times[name]),
            "predicted_s": model[name],
            "measured_speedup": first_time / statistics.median(times[name]),
            "predicted_speedup": first_model / model[name],
            "error": model[name] / statistics.median(times[name]) - 1,
        }
        for name in LAYOUTS
    }


def main() -> None:
    """Measures, predicts, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="measured steps of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each layout")
    parser.add_argument("--samples", type=int, default=32, help="of a step")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    small = measured_layouts(args.steps, args.rounds, args.samples)
    large = {name: predicted(LARGE, overrides, *_LARGE_DEVICE) for name, overrides in LARGE_LAYOUTS.items()}
    if args.json:
        print(json.dumps({"small": small, "large_predicted_s": large}))
        return
    heads = "".join(f"{head:>{width}}" for head, width in (("measured", 10), ("predicted", 11), ("error", 8)))
    print(f"{'4 CPU processes':<22}{heads}{'speed-up: measured':>20}{'predicted':>11}")
    for name, one in small.items():
        print(
            f"{name:<22}{one['measured_s']:>8.3f} s{one['predicted_s']:>9.3f} s{one['error']:>+8.0%}"
            f"{one['measured_speedup']:>20.2f}{one['predicted_speedup']:>11.2f}"
        )
    print(f"\n{'7 B on 8 A800':<22}{'predicted':>10}{'speed-up':>10}")
    for name, seconds in large.items():
        print(f"{name:<22}{seconds:>8.2f} s{large['uniform'] / seconds:>10.2f}")


if __name__ == "__main__":
    main()
