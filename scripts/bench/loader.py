"""The loader alone against our packed step: does reading keep up, and how long does training wait for it.

The model `small` of engine_cost.py (7.86 M parameters, 64 image tokens), batches of 16 samples with lognormal text
lengths, at most 256 tokens, in webdataset shards with encoded images. A run of `loongforge train` tells the time of a
step and what of it was spent waiting for data; then the loader makes the same steps with nothing else to do, every
sample for the first time. Both in turn, several rounds.

    python scripts/bench/loader.py [--rounds 3] [--steps 20] [--threads 4] [--pixels 224] [--kind JPEG] [--json]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import command
import numpy as np
from PIL import Image

from loongforge.cli.data_recipe import recipe_layout, recipe_processor
from loongforge.components.registry import typed_config
from loongforge.config.compose import compose
from loongforge.data.builtin import build
from loongforge.data.loader import TrainLoader
from loongforge.data.sources.shard_writer import write_shards
from loongforge.data.tokenizer import load_tokenizer
from loongforge.planning.packing import data_part, packing_rules

BATCH = 16
OVERRIDES = [
    *("+recipe=llava_sft", "data=custom", f"trainer.global_batch_size={BATCH}", "trainer.micro_batch_size=16"),
    *("model.vision.num_layers=6", "model.vision.hidden_size=192", "model.vision.num_heads=6"),
    *("model.vision.mlp_hidden_size=768", "model.vision.image_size=112", "model.vision.patch_size=14"),
    *("model.llm.num_layers=6", "model.llm.hidden_size=256", "model.llm.num_heads=8", "model.llm.num_kv_heads=4"),
    *("model.llm.mlp_hidden_size=704", "model.llm.vocab_size=1024", "model.llm.max_seq_len=256"),
    *("packing.enabled=true", "trainer.micro_batch_tokens=4096", "trainer.sanity_samples=0", "trainer.eval_every=0"),
    *("trainer.eval_samples=4", "trainer.generate_samples=0", "logging.tensorboard=false"),
]


def write_data(folder: Path, number: int, pixels: int, kind: str) -> list[str]:
    """Shards of so many samples of the length mix; returns the overrides that name them."""
    tokenizer = build("digits_vqa", folder / "digits_vqa") / "tokenizer"
    words, draw = load_tokenizer(str(tokenizer)), np.random.default_rng(0)
    unit = len(words.encode(" digit", add_special_tokens=False))

    def samples() -> Any:
        for key in range(number):
            length = min(192, max(16, int(draw.lognormal(np.log(64), 0.7)))) - 12  # the template's own tokens
            halves = [" digit" * max(1, length // 2 // unit)] * 2
            messages = [
                {"role": "user", "content": "<image>\n" + halves[0]},
                {"role": "assistant", "content": halves[1]},
            ]
            coarse = draw.integers(0, 256, (14, 14, 3), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(coarse).resize((pixels, pixels), Image.Resampling.BICUBIC).save(buffer, kind)
            record = json.dumps({"id": str(key), "messages": messages}).encode()
            yield f"{key:06}", {"json": record, "0.jpg" if kind == "JPEG" else "0.png": buffer.getvalue()}

    write_shards(folder, "train", samples(), 1000)
    return [f"data.train={folder}", f"data.eval={folder}/train-00000.tar", f"data.tokenizer={tokenizer}"]


def measure(overrides: list[str], folder: Path, steps: int, threads: int) -> tuple[float, float]:
    """(seconds of a step, seconds of it spent waiting for data), medians of a run."""
    records = command.train(folder / "run", [*overrides, f"trainer.threads={threads}"], steps)
    step, wait = (statistics.median(record[name] for record in records) for name in ("step_time_s", "data_wait_s"))
    return step, wait


def make_loader(overrides: list[str]) -> TrainLoader:
    """The run's loader, which makes a step when it is asked to."""
    composed = compose([*overrides, "data.prefetch=0"])
    config = typed_config(composed.tree, composed.origin)
    layout = recipe_layout(config)
    assert layout is not None
    return TrainLoader(
        config.data,
        recipe_processor(config),
        seed=config.trainer.seed,
        global_batch_size=BATCH,
        micro_batch_size=BATCH,
        part=data_part(config, layout, 0),
        packing=packing_rules(config, layout),
    )


def load(overrides: list[str], steps: int) -> float:
    """Seconds of a step of the loader alone, one thread, nothing seen before."""
    loader = make_loader(overrides)
    loader.load(0)  # what is imported and opened once
    began = time.perf_counter()
    for step in range(1, steps + 1):
        loader.load(step)
    return (time.perf_counter() - began) / steps


def main() -> None:
    """Measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="measured steps of each run")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--pixels", type=int, default=224, help="width and height of the encoded images")
    parser.add_argument("--kind", choices=("JPEG", "PNG"), default="JPEG")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}  # spinning threads stop a busy machine
    found, longer = [], 5 * args.steps  # steps of the loader alone
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overrides = [*OVERRIDES, *write_data(folder, BATCH * (1 + longer), args.pixels, args.kind)]
        for _ in range(args.rounds):
            step, wait = measure(overrides, folder, args.steps, args.threads)
            alone = load(overrides, longer)
            found.append({"step_s": step, "wait_share": wait / step, "loader_s": alone, "ratio": step / alone})
    result = {key: statistics.median(one[key] for one in found) for key in found[0]}
    if args.json:
        print(json.dumps(result))
        return
    print(f"a packed step of {BATCH} samples  {result['step_s']:.3f} s, {BATCH / result['step_s']:.1f} samples/s")
    print(f"of it waiting for data      {result['wait_share']:.2%}")
    print(f"the loader alone            {result['loader_s']:.4f} s, {BATCH / result['loader_s']:.0f} samples/s")
    print(f"the loader is               {result['ratio']:.1f} times as fast as the step")


if __name__ == "__main__":
    main()
