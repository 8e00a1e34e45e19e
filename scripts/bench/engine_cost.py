"""Our training step against a plain torch loop of the same Hugging Face model.

Both train on the same batches with the same number of threads, in alternating blocks of one process, so that a busy
machine slows both. Prints tokens per second of each and the ratio block by block.

    python scripts/bench/engine_cost.py [--model tiny|small] [--threads 2] [--blocks 10] [--steps 10] [--json]

`tiny` has the sizes of the recipe llava_sft (32 samples of about 20 tokens); `small` has 7.86 M parameters: ViT 6 x 192
on 112 pixels (64 image tokens), LLM 6 x 256 with 4 of 8 heads for keys and values, samples of 80 to 256 tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from loongforge.kernels.backend import select

BACKEND = select("auto")
BACKEND.activate()

import torch  # noqa: E402
from ours import Ours  # noqa: E402
from rows import IMAGE_TOKEN  # noqa: E402
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration  # noqa: E402

import loongforge.components.llm.llama.config as llama  # noqa: E402
from loongforge.components.projector.mlp.config import MLP2xGELUConfig  # noqa: E402
from loongforge.components.vision.vit.config import ClipViTConfig  # noqa: E402
from loongforge.config.schema import Config, DataConfig, ModelConfig, OptimizerConfig, TrainerConfig  # noqa: E402
from loongforge.data.batch import IGNORE, Batch  # noqa: E402
from loongforge.parallel.groups import make_groups  # noqa: E402
from loongforge.parallel.layout import Layout  # noqa: E402
from loongforge.parallel.session import joined_world  # noqa: E402

SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(
        vision=dict(hidden_size=128, num_layers=4, num_heads=4, mlp_hidden_size=512, image_size=32, patch_size=16),
        llm=dict(hidden_size=128, num_layers=4, num_heads=4, num_kv_heads=4, mlp_hidden_size=352, vocab_size=512),
        batch=(32, 19, 25),
    ),
    "small": dict(
        vision=dict(hidden_size=192, num_layers=6, num_heads=6, mlp_hidden_size=768, image_size=112, patch_size=14),
        llm=dict(hidden_size=256, num_layers=6, num_heads=8, num_kv_heads=4, mlp_hidden_size=704, vocab_size=1024),
        batch=(16, 80, 256),
    ),
}


def make_config(sizes: dict[str, Any]) -> Config:
    """A recipe of these sizes."""
    model = ModelConfig(
        vision=ClipViTConfig(type="clip_vit", init_std=0.05, **sizes["vision"]),
        projector=MLP2xGELUConfig(type="mlp2x_gelu", init_std=0.05),
        llm=llama.LlamaConfig(type="llama", init_std=0.05, max_seq_len=512, **sizes["llm"]),
    )
    samples = sizes["batch"][0]
    trainer = TrainerConfig(steps=1, global_batch_size=samples, micro_batch_size=samples)
    data = DataConfig(train="none", tokenizer="none")
    return Config(name="bench", model=model, data=data, optimizer=OptimizerConfig(lr=1e-4), trainer=trainer)


def make_batches(config: Config, sizes: dict[str, Any], number: int) -> list[Batch]:
    """One image a sample; the last tenth of the tokens, at least two, are labels."""
    vision: Any = config.model.vision
    samples, shortest, longest = sizes["batch"]
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(number):
        lengths = torch.randint(shortest, longest + 1, (samples,), generator=generator)
        shape = (samples, int(lengths.max()))
        tokens = torch.randint(4, sizes["llm"]["vocab_size"], shape, generator=generator)
        tokens[:, 4 : 4 + vision.num_patches] = IMAGE_TOKEN
        labels = torch.full(shape, IGNORE)
        for row, length in enumerate(lengths.tolist()):
            tokens[row, length:] = 0
            first = length - 1 - max(2, length // 10)
            labels[row, first : length - 1] = tokens[row, first + 1 : length]
        images = torch.randn(samples, 3, vision.image_size, vision.image_size, generator=generator)
        batches.append(Batch(tokens, labels, images, lengths, [""] * samples))
    return batches


class Plain:
    """A plain loop over transformers' LLaVA."""

    def __init__(self, config: Config) -> None:
        vision: Any = config.model.vision
        llm: Any = config.model.llm
        tower = CLIPVisionConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.mlp_hidden_size,
            num_hidden_layers=vision.num_layers,
            num_attention_heads=vision.num_heads,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
        )
        text = LlamaConfig(
            vocab_size=llm.vocab_size,
            hidden_size=llm.hidden_size,
            intermediate_size=llm.mlp_hidden_size,
            num_hidden_layers=llm.num_layers,
            num_attention_heads=llm.num_heads,
            num_key_value_heads=llm.num_kv_heads,
            max_position_embeddings=llm.max_seq_len,
            tie_word_embeddings=False,
        )
        whole = LlavaConfig(
            vision_config=tower, text_config=text, image_token_index=IMAGE_TOKEN, image_seq_length=vision.num_patches
        )
        self.model = LlavaForConditionalGeneration(whole).float()  # attention through SDPA, its default
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.95))

    def step(self, batch: Batch) -> None:
        """Forward, backward, clip, update."""
        self.optimizer.zero_grad()
        logits = self.model(input_ids=batch.tokens, pixel_values=batch.images).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def _seconds(side: Ours | Plain, batches: list[Batch], clock: str = "wall") -> float:
    began = CLOCKS[clock]()
    for batch in batches:
        side.step(batch)
    return CLOCKS[clock]() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="tiny")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="processor: others' work does not count")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sizes = SIZES[args.model]
    config = make_config(sizes)
    batches = make_batches(config, sizes, args.steps)
    tokens = sum(int(batch.lengths.sum()) for batch in batches)
    with joined_world(BACKEND):
        ours, plain = Ours(config, make_groups(Layout.from_model(config.model, 1), BACKEND.dist_backend)), Plain(config)
        _seconds(ours, batches[:3])
        _seconds(plain, batches[:3])
        pairs = [
            (_seconds(ours, batches, args.clock), _seconds(plain, batches, args.clock)) for _ in range(args.blocks)
        ]
    ratios = sorted(theirs / mine for mine, theirs in pairs)
    result = {
        "model": args.model,
        "threads": args.threads,
        "ours_tokens_per_s": round(tokens / statistics.median(mine for mine, _ in pairs)),
        "plain_tokens_per_s": round(tokens / statistics.median(theirs for _, theirs in pairs)),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(ratios[0], 3),
        "ratio_max": round(ratios[-1], 3),
    }
    print(json.dumps(result) if args.json else "\n".join(f"{key:20} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
