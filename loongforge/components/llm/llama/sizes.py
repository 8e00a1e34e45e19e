"""Parameters, memory and FLOPs of a decoder, counted from its config. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loongforge.components.llm.stages import stage_layers

if TYPE_CHECKING:
    from loongforge.components.llm.llama.config import LlamaConfig


@dataclass(frozen=True)
class FeedForwardSizes:
    """Of one layer."""

    divided: int = 0
    """Parameters that tensor-parallel ranks divide."""
    whole: int = 0
    """Parameters that every rank of the stage holds."""
    experts: int = 0
    """Parameters that tensor-parallel and expert-parallel ranks divide."""
    products: int = 0
    """Multiply-adds of one token."""
    kept: int = 0
    """Numbers kept of a token for the backward pass, which tensor-parallel ranks divide."""


def heads_width(config: LlamaConfig) -> tuple[int, int]:
    """Widths of all queries, and of all keys."""
    return config.num_heads * config.head_size, config.num_kv_heads * config.head_size


def _attention(config: LlamaConfig) -> tuple[int, int]:
    """Parameters of a layer's attention and norms: divided by tensor parallelism, and whole on every rank."""
    query, kv = heads_width(config)
    divided = config.hidden_size * (2 * query + 2 * kv) + ((query + 2 * kv) if config.qkv_bias else 0)
    return divided, 2 * config.hidden_size + (2 * config.head_size if config.qk_norm else 0)


def _layers_on(config: LlamaConfig, layers: Iterable[int], tp: int, ep: int) -> int:
    divided, whole = _attention(config)
    found = 0
    for layer in layers:
        inner = config.feed_forward(layer)
        found += (divided + inner.divided) // tp + whole + inner.whole + inner.experts // (tp * ep)
    return found


def num_params(config: LlamaConfig) -> int:
    """Parameters of the whole model."""
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)
    return _layers_on(config, range(config.num_layers), 1, 1) + embeddings + config.hidden_size


def params_on(config: LlamaConfig, tp: int, pp: int, stage: int, ep: int) -> int:
    """Parameters that a rank of a pipeline stage holds; norms are whole on every rank."""
    found = _layers_on(config, stage_layers(config.num_layers, pp, stage), tp, ep)
    embedding = -(-config.vocab_size // tp) * config.hidden_size
    first, last = stage == 0, stage == pp - 1
    found += embedding if first else 0
    found += config.hidden_size + (0 if first and config.tie_embeddings else embedding) if last else 0
    return found


def kept_per_token(config: LlamaConfig, tp: int, sequence_parallel: bool) -> float:
    """In and out of both norms; q, k, v before and after rotation; attention; what the feed-forward layer keeps."""
    query, kv = heads_width(config)
    inner = sum(config.feed_forward(layer).kept for layer in range(config.num_layers)) / config.num_layers
    residual = 4 * config.hidden_size / (tp if sequence_parallel else 1)
    return residual + (3 * (query + kv) + inner) / tp


def flops(config: LlamaConfig, seq_len: int) -> float:
    """Forward FLOPs per token: weights of layers and output layer, causal attention at its mean length."""
    query, kv = heads_width(config)
    products = config.hidden_size * (2 * query + 2 * kv) * config.num_layers
    products += sum(config.feed_forward(layer).products for layer in range(config.num_layers))
    attention = sum(2 * query * _mean_length(seq_len, window) for window in config.windows)
    return 2.0 * (products + attention + config.vocab_size * config.hidden_size)


def _mean_length(seq_len: int, window: int | None) -> float:
    """Keys that a token of a row sees in the mean."""
    if window is None or seq_len <= window:
        return (seq_len + 1) / 2
    return window - window * (window - 1) / (2 * seq_len)
