"""Transformer layers through `torch.compile`, each by itself: one graph serves all layers of a kind."""

from __future__ import annotations

import torch

from loongforge.components.transformer.attention import TorchAttention
from loongforge.components.transformer.layer import Layer
from loongforge.config.errors import UserError
from loongforge.kernels.backend import Backend


def require_compiler(backend: Backend) -> str | None:
    """What the user should know before layers are compiled; None: nothing.

    Raises:
        UserError: the backend cannot.
    """
    support = backend.capability("compile")
    if support.value == "no":
        raise UserError(
            f"trainer.compile='layers': backend {backend.name} compiles nothing ({support.source}). Allowed here: off"
        )
    if support.value == "unknown":
        return f"trainer.compile=layers: whether backend {backend.name} compiles is not known ({support.source})"
    return None


def compile_layers(model: torch.nn.Module, compiler: str = "inductor") -> int:
    """Compiles every transformer layer in place when it is first run in training; returns how many.

    Attention itself stays as it is: it has kernels of its own, and documents of a packed row differ from step to step.
    Names of parameters, checkpoints and passes without gradients do not change.

    Args:
        model: This rank's parts.
        compiler: One of `torch.compiler.list_backends()`.
    """
    layers = [part for part in model.modules() if isinstance(part, Layer)]
    for layer in layers:
        for part in layer.modules():
            if isinstance(part, TorchAttention):
                part.forward = torch.compiler.disable(part.forward)  # type: ignore[method-assign]
        layer.compile(backend=compiler)
    return len(layers)
