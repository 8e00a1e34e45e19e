"""Generation with cached keys and values against computing the whole sequence again for each token.

Both continue the same prompts (one image and some text) greedily with the same weights and threads, in alternation, and
have to write the same tokens. Prints milliseconds per new token of each and the ratio, of the quickest rounds: by the
clock, and of the processor's time in this process, which other jobs change less (with one thread).

    python scripts/bench/generation.py [--model tiny|small] [--attention causal|mmca] [--new-tokens 256] [--batch 1]
                                       [--threads 1] [--rounds 5] [--json]

`tiny` and `small` have the sizes of `engine_cost.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from loongforge.kernels.backend import select

BACKEND = select("auto")
BACKEND.activate()

import torch  # noqa: E402
from engine_cost import IMAGE_TOKEN, SIZES, make_config  # noqa: E402

from loongforge.inference.generation import Prompt, greedy  # noqa: E402
from loongforge.inference.rows import Rows  # noqa: E402
from loongforge.model.assembly import build_model  # noqa: E402
from loongforge.model.execution import Runner  # noqa: E402
from loongforge.parallel.groups import make_groups  # noqa: E402
from loongforge.parallel.layout import Layout  # noqa: E402
from loongforge.parallel.session import joined_world  # noqa: E402

NO_END = -1


def make_prompts(config: Any, number: int) -> list[Prompt]:
    """An image and 16 tokens of text each."""
    vision = config.model.vision
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(number):
        text = torch.randint(4, config.model.llm.vocab_size, (16,), generator=generator).tolist()
        image = torch.randn(1, 3, vision.image_size, vision.image_size, generator=generator)
        found.append(Prompt([*text[:4], *[IMAGE_TOKEN] * vision.num_patches, *text[4:]], image.numpy()))
    return found


@torch.no_grad()
def recompute(runner: Runner, prompts: list[Prompt], new_tokens: int) -> list[list[int]]:
    """The most likely continuation, from the whole sequence each time; images are encoded once."""
    rows = [list(prompt.ids) for prompt in prompts]
    images = torch.cat([torch.from_numpy(prompt.images) for prompt in prompts]).to(runner.device)
    llm, image_rows = runner.model.llm, None
    for _ in range(new_tokens):
        batch = Rows(runner, len(rows), 0, 0).batch(rows, images)
        image_rows = image_rows or runner.encode({0: [batch]})
        last = torch.tensor([(len(row) - 1) * len(rows) + i for i, row in enumerate(rows)], device=runner.device)

        def pick(hidden: torch.Tensor, _: Any, last: torch.Tensor = last) -> torch.Tensor:
            return llm.best_tokens(llm.logits(hidden, last, gathered=True))

        best = runner.forward([batch], image_rows, pick)
        for row, token in zip(rows, best[0].tolist(), strict=True):
            row.append(token)
    return [row[len(prompt.ids) :] for row, prompt in zip(rows, prompts, strict=True)]


def compare(runner: Runner, prompts: list[Prompt], new_tokens: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of both ways, in alternation."""
    clocks = {"": time.perf_counter, "cpu_": time.process_time}
    found: dict[str, float] = {}
    ways: dict[str, Any] = {
        "cached": lambda n: greedy(runner, prompts, eos_id=NO_END, max_new_tokens=n, max_length=512),
        "recomputed": lambda n: recompute(runner, prompts, n),
    }
    for way in ways.values():
        way(4)
    for _ in range(rounds):
        answers = []
        for name, way in ways.items():
            began = {key: clock() for key, clock in clocks.items()}
            answers.append(way(new_tokens))
            for key, clock in clocks.items():
                label = f"{name}_{key}ms_per_token"
                found[label] = min(found.get(label, float("inf")), 1e3 * (clock() - began[key]) / new_tokens)
        assert answers[0] == answers[1], "the cache changes what is written"
        assert min(map(len, answers[0])) == new_tokens, "an answer has ended early"
    for key in clocks:
        found[f"{key}ratio"] = found[f"recomputed_{key}ms_per_token"] / found[f"cached_{key}ms_per_token"]
    return {label: round(number, 3) for label, number in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="tiny")
    parser.add_argument("--attention", choices=["causal", "mmca"], default="causal")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = make_config(SIZES[args.model])
    config.model.llm.attention = args.attention
    with joined_world(BACKEND):
        groups = make_groups(Layout.from_model(config.model, 1), BACKEND.dist_backend)
        runner = Runner(build_model(config, groups, image_token=IMAGE_TOKEN), groups)
        with torch.no_grad():
            runner.model.llm.output_layer.weight[IMAGE_TOKEN] = 0  # a written image token would end the answer
        result = compare(runner, make_prompts(config, args.batch), args.new_tokens, args.rounds)
    sizes = {name: getattr(args, name) for name in ("model", "attention", "new_tokens", "batch", "threads")}
    result = sizes | result
    print(json.dumps(result) if args.json else "\n".join(f"{key:28} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
