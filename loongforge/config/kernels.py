"""The section `kernels` of a recipe. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class KernelsConfig:
    """Which implementation each op uses; `loongforge backends` lists those of this machine.

    `auto`: the best that the backend has. `reference`: the plain formula. The choice is made when the model is built,
    printed, saved with the run, and kept to its end.
    """

    all: str = "auto"
    """For every op that has an implementation of this name and is `auto` below."""
    attention: str = "auto"
    """Attention over whole rows."""
    attention_varlen: str = "auto"
    """Attention within the documents of packed rows."""
    rms_norm: str = "auto"
    """RMSNorm."""
    layer_norm: str = "auto"
    """LayerNorm."""
    rotary: str = "auto"
    """Rotary positions, of one or several axes."""
    swiglu: str = "auto"
    """SwiGLU."""
    gelu: str = "auto"
    """GELU with the error function."""
    gelu_tanh: str = "auto"
    """GELU in its tanh approximation."""
    quick_gelu: str = "auto"
    """GELU as `x sigmoid(1.702 x)`."""
    linear_cross_entropy: str = "auto"
    """Output layer and loss; all but `reference` do without the whole logits."""
    moe_permute: str = "auto"
    """Rows to the order of their experts."""
    moe_unpermute: str = "auto"
    """And back."""
    grouped_gemm: str = "auto"
    """The experts' products."""
    adamw: str = "auto"
    """The optimizer's step, where neither Transformer Engine nor apex brings megatron-core its own."""
