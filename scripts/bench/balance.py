"""Packed steps with samples placed as they come, by their cost, and with images encoded on any rank.

Makes a skewed data set (texts, one image, now and then many), trains the recipe llava_sft with a heavy encoder on it on
4 CPU processes of one thread under `balance.mode` none, llm and full in turn, and sets the measured speed-up
beside the one that `loongforge plan --balance` simulates for the first steps.

    python scripts/bench/balance.py [--steps 16] [--rounds 2] [--json]
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from command import WARM_UP, run, train

from loongforge.data.builtin import build

NPROC, MODES = 4, ("none", "llm", "full")
OVERRIDES = [
    *(
        "+recipe=llava_sft",
        "data=custom",
        f"launcher.nproc={NPROC}",
        "trainer.threads=1",
        "trainer.global_batch_size=32",
    ),
    *("trainer.sanity_samples=0", "trainer.generate_samples=0", "trainer.eval_samples=4", "data.shuffle=false"),
    *("model.vision.patch_size=4", "model.vision.num_layers=6", "model.vision.hidden_size=256"),
    *("model.vision.mlp_hidden_size=1024", "model.llm.hidden_size=256", "model.llm.mlp_hidden_size=704"),
    *("model.llm.max_seq_len=1024", "data.max_length=1024", "packing.enabled=true", "trainer.micro_batch_tokens=1024"),
    "logging.tensorboard=false",
]
"""64 patches and LLM tokens for each image."""


def skewed(folder: Path, samples: int) -> Path:
    """A shard of samples of which most have no image, some one, a few a dozen; drawn from digits_vqa."""
    digits = build("digits_vqa", folder / "digits_vqa")
    with tarfile.open(digits / "val-00000.tar") as shard:
        images = [shard.extractfile(m).read() for m in shard.getmembers() if m.name.endswith(".png")][:200]  # type: ignore[union-attr]
    draw = np.random.default_rng(0)
    with tarfile.open(folder / "skewed-00000.tar", "w") as out:
        for number in range(samples):
            count = int(draw.choice([0, 1, 2, 12], p=[0.5, 0.35, 0.1, 0.05]))
            words = " ".join(["digit"] * int(draw.lognormal(3, 1)))[:800]
            messages = [
                {"role": "user", "content": "<image>" * count + f"\n{words}?"},
                {"role": "assistant", "content": str(draw.integers(100))},
            ]
            members = {"json": json.dumps({"id": str(number), "messages": messages}).encode()}
            members |= {f"{i}.png": images[draw.integers(len(images))] for i in range(count)}
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{number:06}.{ending}")
                member.size = len(content)
                out.addfile(member, io.BytesIO(content))
    return digits


def where(folder: Path, tokenizer: Path) -> list[str]:
    """Overrides that name the data."""
    data = folder / "skewed-00000.tar"
    return [f"data.train={data}", f"data.eval={data}", f"data.tokenizer={tokenizer}"]


def simulate(folder: Path, tokenizer: Path) -> dict[str, float]:
    """What `plan --balance` takes a step of each mode to be, over one of `none`."""
    plan = json.loads(run("plan", *OVERRIDES, *where(folder, tokenizer), "--balance", "--json"))
    return {mode: one["step"] for mode, one in plan["modes"].items()}


def measure(folder: Path, tokenizer: Path, mode: str, steps: int) -> dict[str, float]:
    """Mean seconds of a step, and how uneven the ranks were."""
    data = where(folder, tokenizer)
    records = train(folder / "run", [*OVERRIDES, *data, f"balance.mode={mode}"], steps)
    return {
        key: statistics.mean(record[name] for record in records)
        for key, name in (("seconds", "step_time_s"), ("llm", "balance/llm"), ("vision", "balance/vision"))
    }


def main() -> None:
    """Measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16, help="measured steps of each run")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each mode")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digits = skewed(folder, 32 * (args.steps + WARM_UP))
        simulated = simulate(folder, digits / "tokenizer")
        for _ in range(args.rounds):
            for mode in MODES:
                found[mode].append(measure(folder, digits / "tokenizer", mode, args.steps))
    result: dict[str, Any] = {
        mode: {key: statistics.median(one[key] for one in runs) for key in runs[0]} | {"simulated": simulated[mode]}
        for mode, runs in found.items()
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"{'balance.mode':<14}{'step':>9}{'speed-up':>10}{'simulated':>11}{'balance/llm':>13}{'balance/vision':>16}")
    for mode, one in result.items():
        speed = result["none"]["seconds"] / one["seconds"]
        figures = f"{speed:>10.2f}{1 / one['simulated']:>11.2f}{one['llm']:>13.2f}{one['vision']:>16.2f}"
        print(f"{mode:<14}{one['seconds']:>7.3f} s{figures}")


if __name__ == "__main__":
    main()
