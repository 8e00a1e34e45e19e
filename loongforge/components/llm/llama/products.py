"""Matrix products of a decoder. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loongforge.components.llm.llama.sizes import heads_width
from loongforge.components.products import Product, layer_products

if TYPE_CHECKING:
    from loongforge.components.llm.llama.config import LlamaConfig


def products(config: LlamaConfig) -> list[Product]:
    """In the order of a forward pass."""
    query, kv = heads_width(config)
    width = config.hidden_size
    table = "embedding.word_embeddings.weight"
    found = [Product("tokens", 0.0, table)]
    for number, window in enumerate(config.windows):
        found += layer_products(
            f"decoder.layers.{number}.",
            "tokens",
            qkv=2.0 * width * (query + 2 * kv),
            pairs="pairs" if window is None else "window_pairs",
            attention=4.0 * query,
            proj=2.0 * query * width,
            mlp=_feed_forward(config, number),
        )
    found.append(Product("tokens", 0.0, "decoder.final_layernorm.weight"))
    output = table if config.tie_embeddings else "output_layer.weight"
    found.append(Product("labels", 2.0 * width * config.vocab_size, output))
    return found


def _feed_forward(config: LlamaConfig, layer: int) -> list[Product]:
    sizes = config.feed_forward(layer)
    if not sizes.experts:
        return [
            Product("tokens", 2.0 * sizes.products * 2 / 3, "mlp.linear_fc1.weight"),
            Product("tokens", 2.0 * sizes.products / 3, "mlp.linear_fc2.weight"),
        ]
    taken = 2.0 * (sizes.products - sizes.whole)  # of the experts that a token takes
    return [
        Product("tokens", 2.0 * sizes.whole, "mlp.gate.weight"),
        Product("tokens", taken * 2 / 3, "mlp.experts.0.linear_fc1.weight"),
        Product("tokens", taken / 3, "mlp.experts.0.linear_fc2.weight"),
    ]
