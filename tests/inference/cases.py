"""What a rank does in the tests of inference; imported by ranks, so megatron-core comes after the backend."""

from __future__ import annotations

from typing import Any

from loongforge.kernels.backend import select

BACKEND = select("auto")
BACKEND.activate()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from loongforge.components.sharding import fill_parameters  # noqa: E402
from loongforge.config.schema import Config  # noqa: E402
from loongforge.data.batch import IGNORE, Batch  # noqa: E402
from loongforge.inference.generation import Prompt, Settings, generate, greedy  # noqa: E402
from loongforge.inference.sampling import Sampling  # noqa: E402
from loongforge.inference.scoring import gather_scores, score_batches, summarize  # noqa: E402
from loongforge.model.assembly import build_model  # noqa: E402
from loongforge.model.execution import Runner  # noqa: E402
from loongforge.parallel.groups import make_groups  # noqa: E402
from loongforge.parallel.layout import Layout  # noqa: E402
from loongforge.parallel.session import joined_world  # noqa: E402
from tests.support.tiny import IMAGE_TOKEN, NUM_PATCHES, VOCAB, global_batch, micro_batches  # noqa: E402

EOS = 2
LONGEST = 12


def runner_with_weights_of(config: Config, groups: Any, theirs: torch.nn.Module) -> Runner:
    """Our model with the weights of a transformers model."""
    model = build_model(config, groups, image_token=IMAGE_TOKEN)
    state = theirs.state_dict()
    for name, part in model.components().items():
        names = getattr(config.model, name).name_map()

        def full(key: str, shape: tuple[int, ...], names: Any = names) -> torch.Tensor:
            return names.full_tensor(key, lambda keys: next(state[k] for k in keys if k in state)).reshape(shape)

        fill_parameters(part, full, part.tp_group)
    return Runner(model, groups)


def prompts(number: int = 6) -> list[Prompt]:
    """Of different lengths; every second one with an image, one with two."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for i in range(number):
        count = 2 if i == 4 else (i + 1) % 2
        ids = torch.randint(4, VOCAB, (5 + i,), generator=generator).tolist()
        for _ in range(count):
            ids = [ids[0], *[IMAGE_TOKEN] * NUM_PATCHES, *ids[1:]]
        made.append(Prompt(ids, torch.randn(count, 3, 32, 32, generator=generator).numpy(), key=i))
    return made


def answers(runner: Runner, some: list[Prompt], eos_id: int = EOS, longest: int = LONGEST) -> list[list[int]]:
    """Greedy continuations."""
    return greedy(runner, some, eos_id=eos_id, max_new_tokens=longest, max_length=128)


def drawn(runner: Runner, some: list[Prompt], *, shared: bool = False, **sampling: Any) -> list[list[int]]:
    """Continuations that are drawn."""
    settings = Settings(EOS, 5, 128, Sampling(**{"temperature": 1.5, "top_p": 0.95, "seed": 7} | sampling))
    return [completion.tokens for completion in generate(runner, some, settings, shared=shared)]


def answered_batch(some: list[Prompt], replies: list[list[int]]) -> Batch:
    """Each prompt followed by its reply, whose tokens are the labels."""
    rows = [prompt.ids + reply for prompt, reply in zip(some, replies, strict=True)]
    length = -(-max(map(len, rows)) // 4) * 4
    tokens = torch.full((len(rows), length), EOS)
    labels = torch.full((len(rows), length), IGNORE)
    for i, (row, prompt) in enumerate(zip(rows, some, strict=True)):
        tokens[i, : len(row)] = torch.tensor(row)
        labels[i, len(prompt.ids) - 1 : len(row) - 1] = torch.tensor(row[len(prompt.ids) :])
    images = torch.from_numpy(np.concatenate([prompt.images for prompt in some]))
    lengths = torch.tensor([len(row) for row in rows])
    return Batch(tokens, labels, images, lengths, [str(i) for i in range(len(rows))])


def infer(config: Config) -> dict[str, Any]:
    """Answers, scores and summary of the drawn model under any layout."""
    with joined_world(BACKEND) as world:
        groups = make_groups(Layout.from_model(config.model, world.size), "gloo")
        runner = Runner(build_model(config, groups, image_token=IMAGE_TOKEN), groups)
        parts = [
            {r: micro_batches(global_batch(step), 2, r, groups.layout.dp) for r in groups.replicas} for step in (0, 1)
        ]
        mine = [{r: by[r][i] for r in by} for by in parts for i in range(len(next(iter(by.values()))))]
        scores = score_batches(runner, mine)
        summary, everyone = summarize(runner, scores), gather_scores(runner, scores)
        return {
            "answers": answers(runner, prompts()),
            "drawn": drawn(runner, prompts(5), shared=True),
            "summary": vars(summary),
            "scores": sorted((score.id, score.logprobs, score.exact) for score in everyone),
            "training": runner.model.training,
        }
