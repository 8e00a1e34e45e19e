"""What a rank measures for the tests of planning; imported by ranks, so megatron-core comes after the backend."""

from __future__ import annotations

from loongforge.kernels.backend import select

BACKEND = select("auto")
BACKEND.activate()

import torch  # noqa: E402

from loongforge.config.schema import Config  # noqa: E402
from loongforge.data.batch import Batch  # noqa: E402
from loongforge.model.assembly import build_model  # noqa: E402
from loongforge.model.execution import Runner  # noqa: E402
from loongforge.parallel.exchange import Message  # noqa: E402
from loongforge.parallel.groups import make_groups  # noqa: E402
from loongforge.parallel.layout import Layout  # noqa: E402
from loongforge.parallel.session import joined_world  # noqa: E402
from tests.support.tiny import IMAGE_TOKEN, global_batch, micro_batches  # noqa: E402


def held_parameters(config: Config) -> dict[str, int]:
    """Parameters of each component on this rank."""
    with joined_world(BACKEND) as world:
        groups = make_groups(Layout.from_model(config.model, world.size), "gloo")
        model = build_model(config, groups, image_token=IMAGE_TOKEN)
        return {name: sum(p.numel() for p in part.parameters()) for name, part in model.components().items()}


def received_rows(config: Config) -> int:
    """Bytes of image rows and of their gradients that reach this rank in a step of 8 samples with 4 images."""
    with joined_world(BACKEND) as world:
        groups = make_groups(Layout.from_model(config.model, world.size), "gloo")
        model = build_model(config, groups, image_token=IMAGE_TOKEN)
        seen: list[Message] = []
        runner = Runner(model, groups, observe=seen.append)
        dp, size = groups.layout.dp, config.trainer.micro_batch_size
        runner.train({r: micro_batches(global_batch(0), size, r, dp) for r in groups.replicas}, 26)
        return sum(message.bytes for message in seen if message.target == groups.rank)


def kept_bytes(config: Config, part: str, size: int) -> int:
    """Bytes that a component keeps for the backward pass, of so many tokens or images; in one process."""
    with joined_world(BACKEND) as world:
        groups = make_groups(Layout.from_model(config.model, world.size), "gloo")
        model = build_model(config, groups, image_token=IMAGE_TOKEN)
        ignored = {param.untyped_storage().data_ptr() for param in model.parameters()}
        kept: list[torch.Tensor] = []  # nothing is freed, so that no address is used twice

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            if part == "vision":
                output = model.vision(torch.randn(size, 3, 32, 32))
            else:
                tokens = torch.randint(4, 200, (1, size))
                batch = Batch(tokens, tokens, torch.zeros(0, 3, 32, 32), torch.tensor([size]), ["0"])
                output = model(batch, None)
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
        assert output.requires_grad
        return sum(size for address, size in sizes.items() if address not in ignored)
