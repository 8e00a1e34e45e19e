"""Memory that a rank needs to import a Hugging Face checkpoint, beside its size divided by the ranks.

Writes a synthetic Llama (bf16, safetensors shards), then reads it with several processes under tensor and under
pipeline parallelism. A rank's peak is the largest resident set (VmHWM of /proc, shared and file pages included) from
the empty model to the loaded one; `allowed` is 1.2 N / ranks + 1 GiB for a checkpoint of N bytes.

    python scripts/bench/import_memory.py [--gb 2] [--ranks 2 4] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from loongforge.checkpoint.hf_write import Entry, write_safetensors

GIB = 1 << 30
WIDTH, INNER, VOCAB, HEADS = 2048, 5504, 32000, 16


def layer_count(size: float) -> int:
    """Layers that make up a checkpoint of so many bytes, a multiple of 4."""
    layer = 2 * (4 * WIDTH**2 + 3 * WIDTH * INNER + 2 * WIDTH)
    return max(4, round((size - 4 * VOCAB * WIDTH) / layer / 4) * 4)


def write_checkpoint(folder: Path, size: float) -> int:
    """A synthetic Llama of about so many bytes; returns how many exactly."""
    layers = layer_count(size)
    shapes = {
        "model.embed_tokens.weight": (VOCAB, WIDTH),
        "lm_head.weight": (VOCAB, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for i in range(layers):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (WIDTH, INNER)}
        shapes |= {f"{layer}{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    entries = [Entry(name, shape, torch.bfloat16) for name, shape in shapes.items()]
    write_safetensors(folder, entries, _random(entries), max_bytes=500 * 10**6)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return sum(entry.nbytes for entry in entries)


def _random(entries: list[Entry]) -> Iterator[torch.Tensor]:
    for entry in entries:
        yield torch.randn(entry.shape)


def work(folder: Path, parallel: dict[str, int], out: Path) -> None:
    """What a rank does: builds its shard, imports, and writes down its memory."""
    from loongforge.kernels.backend import select

    backend = select("cpu")
    backend.activate()
    from loongforge.checkpoint.families.registry import family_of
    from loongforge.checkpoint.hf_folder import HFFolder
    from loongforge.config.schema import Config, DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainerConfig
    from loongforge.model.assembly import build_model
    from loongforge.parallel.groups import make_groups
    from loongforge.parallel.layout import Layout
    from loongforge.parallel.session import joined_world
    from loongforge.training.weights import load_initial_weights

    hf = HFFolder(folder).config
    model_config = ModelConfig(**family_of(hf, folder).components(hf, folder), init_from=str(folder))
    model_config.llm.parallel = ParallelConfig(**parallel)
    trainer = TrainerConfig(steps=1, global_batch_size=1, micro_batch_size=1, precision="bf16")
    config = Config(
        name="memory",
        model=model_config,
        data=DataConfig(train="none", tokenizer="none"),
        optimizer=OptimizerConfig(lr=1e-3),
        trainer=trainer,
    )
    with joined_world(backend) as world:
        groups = make_groups(Layout.from_model(config.model, world.size), "gloo")
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        model = build_model(config, groups, image_token=None)
        load_initial_weights(config, model, groups)
        held = sum(param.numel() * param.element_size() for param in model.parameters())
        found = {"before": before, "peak": _memory("VmHWM"), "shard": held}
        (out / f"{world.rank}.json").write_text(json.dumps(found))


def _memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def measure(folder: Path, ranks: int, parallel: dict[str, int]) -> dict[str, int]:
    """The largest figures of all ranks."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as out:
        free.bind(("127.0.0.1", 0))
        place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        free.close()
        command = [sys.executable, __file__, "--work", str(folder), json.dumps(parallel), out]
        environ = {**os.environ, **place, "OMP_NUM_THREADS": "1"}
        started = [
            subprocess.Popen(command, env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(ranks)
        ]
        if any([process.wait() for process in started]):
            raise SystemExit("a rank failed")
        found = [json.loads((Path(out) / f"{rank}.json").read_text()) for rank in range(ranks)]
    return {key: max(one[key] for one in found) for key in found[0]}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0, help="size of the checkpoint in GB")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--axes", nargs="+", default=["tp", "pp"], help="how ranks divide the model")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(Path(args.work[0]), json.loads(args.work[1]), Path(args.work[2]))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        size = write_checkpoint(Path(folder), args.gb * 1e9)
        for ranks in args.ranks:
            for axis in args.axes:
                found = measure(Path(folder), ranks, {axis: ranks})
                allowed = round(1.2 * size / ranks + GIB)
                results[f"{axis}={ranks}"] = {**found, "size": size, "allowed": allowed}
    if args.json:
        print(json.dumps(results))
        return
    heads = ("checkpoint", "shard", "before", "peak", "allowed")
    print(f"{'GiB':<8}" + "".join(f"{head:>12}" for head in heads))
    for name, one in results.items():
        figures = (one[key] / GIB for key in ("size", "shard", "before", "peak", "allowed"))
        print(f"{name:<8}" + "".join(f"{figure:>12.2f}" for figure in figures))


if __name__ == "__main__":
    main()
