"""Matrix products of a component's forward pass, as data: what FLOPs are counted from. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from loongforge.components.trainable import trains
from loongforge.config.schema import ComponentConfig

COUNTS = (
    "tokens",
    "labels",
    "pairs",
    "window_pairs",
    "images",
    "patches",
    "patch_pairs",
    "patch_window_pairs",
    "features",
    "feature_pairs",
    "rows",
)
"""What products are counted by. Of the LLM: tokens without padding, labelled ones, pairs of a query and a key that it
sees in full and in windowed layers. Of images: those that the encoder takes (tiles), patches, pairs of patches that
see one another in full and in windowed layers, features, pairs of features of an image, and rows that the projector
gives."""

Adapters = Mapping[str, tuple[int, int, int]]
"""Widths inside, at the input and at the output of low-rank adapters, by global name of the layer that they are on."""


@dataclass(frozen=True)
class Product:
    """A product of the forward pass, in the order in which a component computes them."""

    per: str
    """One of `COUNTS`."""
    flops: float
    """Of one of these; 0 for a parameter that is merely passed on the way (an embedding, a norm)."""
    weight: str = ""
    """Global name of the weight; none: both factors are activations (attention)."""
    recomputed: bool = False
    """Part of a layer that `trainer.recompute=full` computes a second time."""
    several: bool = False
    """Stands for several, one after another: where they train, all but the first need the gradient of their input."""
    trained: bool | None = None
    """Whether the weight trains; None: its name tells."""


@dataclass
class Passes:
    """FLOPs by pass."""

    forward: float = 0.0
    weights: float = 0.0
    """Gradients of weights."""
    inputs: float = 0.0
    """Gradients of inputs."""
    again: float = 0.0
    """Forward, a second time."""

    @property
    def model(self) -> float:
        """What the step needs (MFU)."""
        return self.forward + self.weights + self.inputs

    @property
    def hardware(self) -> float:
        """What is computed for it (HFU)."""
        return self.model + self.again


def training_passes(
    products: Iterable[Product],
    component: ComponentConfig,
    *,
    fed: bool,
    recompute: bool,
    adapters: Adapters,
) -> dict[str, Passes]:
    """FLOPs of a training step by what they are counted by.

    A product costs as much again for the gradient of its weight, where that trains, and for that of its input, where
    something before it trains. A product of two activations has two inputs.

    Args:
        products: Of a component.
        component: Says which parameters train.
        fed: The component's own input takes a gradient.
        recompute: Layers are computed a second time in the backward pass.
        adapters: Of the component.
    """
    found: dict[str, Passes] = {}
    needed, listed = fed, list(_with_adapters(products, adapters))
    live = fed or any(_trains(product, component) for product in listed)
    for product in listed:
        passes, learned = found.setdefault(product.per, Passes()), _trains(product, component)
        passes.forward += product.flops
        passes.weights += product.flops if learned and product.weight else 0.0
        if needed or (learned and product.several):
            passes.inputs += product.flops * (1 if product.weight else 2)
        passes.again += product.flops if recompute and product.recomputed and live else 0.0
        needed = needed or learned or _trains(product, component, bias=True)
    return found


def _with_adapters(products: Iterable[Product], adapters: Adapters) -> Iterator[Product]:
    """Adapters follow the layers that they are on."""
    for product in products:
        yield product
        layer = product.weight.removesuffix(".weight")
        if layer in adapters:
            inner, into, out = adapters[layer]
            a = replace(product, flops=product.flops * inner / out, weight=f"{layer}.lora.a", trained=True)
            yield a
            yield replace(a, flops=product.flops * inner / into, weight=f"{layer}.lora.b")


def _trains(product: Product, component: ComponentConfig, *, bias: bool = False) -> bool:
    if not product.weight:
        return False
    if product.trained is not None:
        return product.trained
    name = product.weight.removesuffix("weight") + "bias" if bias else product.weight
    return trains(name, component)


def whole(component: ComponentConfig, per: str, flops: float) -> list[Product]:
    """A component that does not say more than its FLOPs; it trains as its `freeze` says."""
    return [Product(per, flops, "all of it", several=True, trained=component.trains_whole)]


def layer_products(
    prefix: str, per: str, *, qkv: float, pairs: str, attention: float, proj: float, mlp: Iterable[Product]
) -> list[Product]:
    """A transformer layer of megatron-core.

    Args:
        prefix: Of its parameters' global names.
        per: Its tokens.
        qkv: FLOPs of the three maps for one of them.
        pairs: What attention is counted by.
        attention: FLOPs of one pair.
        proj: Of the map behind it.
        mlp: Of the feed-forward part; names without the prefix.
    """
    found = [
        Product(per, 0.0, "input_layernorm.weight"),
        Product(per, qkv, "self_attention.linear_qkv.weight"),
        Product(pairs, attention),
        Product(per, proj, "self_attention.linear_proj.weight"),
        Product(per, 0.0, "pre_mlp_layernorm.weight"),
        *mlp,
    ]
    return [replace(one, weight=one.weight and prefix + one.weight, recomputed=True) for one in found]
