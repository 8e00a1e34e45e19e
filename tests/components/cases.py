"""What a rank does in the tests of layers; imported by ranks, so megatron-core comes after the backend."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from loongforge.kernels.backend import select

BACKEND = select("auto")
BACKEND.activate()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core.transformer.enums import AttnMaskType  # noqa: E402

from loongforge.components.transformer.attention import TorchAttention, gather_chunks  # noqa: E402
from loongforge.components.transformer.cross_entropy import vocab_parallel_losses  # noqa: E402
from loongforge.components.transformer.sequence import SequenceView  # noqa: E402
from loongforge.parallel.routes import context_positions  # noqa: E402
from loongforge.parallel.session import joined_world  # noqa: E402

HEAD_DIM = 8


def attention(group: Any, window: int | None = None) -> TorchAttention:
    """Causal core attention of a context-parallel group."""
    config: Any = SimpleNamespace(
        kv_channels=HEAD_DIM, attention_dropout=0.0, window_size=window and (window - 1, 0), window_attn_skip_freq=None
    )
    collection: Any = SimpleNamespace(cp=group)
    return TorchAttention(config, 1, AttnMaskType.causal, "self", pg_collection=collection)


def attend(
    tensors: list[torch.Tensor],
    borders: list[int] | None,
    is_image: torch.Tensor | None = None,
    window: int | None = None,
) -> tuple[torch.Tensor, list[Any]]:
    """One rank's part of an attention over the world.

    Args:
        tensors: Whole query, key, value `[S, B, heads, head_dim]`, and the gradient of the output `[S, B, width]`.
        borders: Of a packed row's documents.
        is_image: bool `[B, S]`: attention treats images apart.
        window: Latest positions that a token attends to.

    Returns:
        Output and gradients of query, key and value at this rank's positions.
    """
    with joined_world(BACKEND) as world:
        length = len(tensors[0])
        positions = torch.from_numpy(context_positions(length, world.rank, world.size))
        cu_seqlens = None if borders is None else torch.tensor(borders, dtype=torch.int32)
        *inputs, gradient = (tensor[positions] for tensor in tensors)
        for part in inputs:
            part.requires_grad_()
        view = SequenceView(positions, length, cu_seqlens, is_image=is_image)
        output = attention(dist.group.WORLD, window)(*inputs, view)
        output.backward(gradient)
        return output.detach(), [torch.zeros_like(part) if part.grad is None else part.grad for part in inputs]


def gather(whole: torch.Tensor, gradients: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Gathers the ranks' chunks of a row `[S, n]`; each rank has a gradient of the result, `[ranks, S, n]` together."""
    with joined_world(BACKEND) as world:
        local = whole[torch.from_numpy(context_positions(len(whole), world.rank, world.size))].requires_grad_()
        gathered = gather_chunks(local, dist.group.WORLD)
        gathered.backward(gradients[world.rank])
        return gathered.detach(), local.grad


def losses(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, Any, bool]:
    """Cross-entropy with this rank's part of the vocabulary.

    Returns:
        Losses, the gradient of `losses @ weights` by this rank's logits, and whether these are unchanged.
    """
    with joined_world(BACKEND) as world:
        before = logits.chunk(world.size, -1)[world.rank].clone()
        local = before.clone().requires_grad_()
        found = vocab_parallel_losses(local, targets, dist.group.WORLD)
        (found @ weights).backward()
        return found.detach(), local.grad, torch.equal(local, before)
