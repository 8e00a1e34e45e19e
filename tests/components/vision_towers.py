"""Vision towers of transformers that our configs describe, with weights in which every parameter matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.components.hf_models import randomise

TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "internvit": ("internvit", {}),
    "internvit without biases": ("internvit", dict(qkv_bias=False)),
    "internvit, RMSNorm, q and k norm": ("internvit", dict(norm="rms_norm", qk_norm=True, qkv_bias=False)),
    "internvit with its last norm": ("internvit", dict(post_norm=True)),
    "internvit before its last layer": ("internvit", dict(feature_layer=-2)),
    "dinov2": ("dinov2", {}),
    "dinov2 without its last norm": ("dinov2", dict(post_norm=False)),
    "dinov2, registers, before its last layer": ("dinov2", dict(registers=3, feature_layer=-2)),
    "dinov2, registers, SwiGLU": ("dinov2", dict(registers=3, swiglu=True, mlp_hidden_size=88)),
    "dinov2, SwiGLU, no biases": ("dinov2", dict(swiglu=True, mlp_hidden_size=88, qkv_bias=False)),
}


def tower(config: Any, seed: int) -> torch.nn.Module:
    """The model of transformers that `config` describes."""
    import transformers

    sizes = dict(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        layer_norm_eps=config.norm_eps,
    )
    if config.type == "internvit":
        found = transformers.InternVLVisionConfig(
            intermediate_size=config.mlp_hidden_size,
            norm_type=config.norm,
            use_qk_norm=config.qk_norm,
            attention_bias=config.qkv_bias,
            use_mean_pooling=not config.post_norm,
            **sizes,
        )
        return randomise(transformers.InternVLVisionModel(found), seed)
    sizes |= dict(mlp_ratio=2, use_swiglu_ffn=config.swiglu, qkv_bias=config.qkv_bias)
    if config.registers:
        with_registers = transformers.Dinov2WithRegistersConfig(num_register_tokens=config.registers, **sizes)
        return randomise(transformers.Dinov2WithRegistersModel(with_registers), seed)
    return randomise(transformers.Dinov2Model(transformers.Dinov2Config(**sizes)), seed)


def features(theirs: Any, config: Any, pixels: torch.Tensor) -> torch.Tensor:
    """`[N, P, H]`: what a LLaVA would take of the tower's outputs."""
    output = theirs(pixel_values=pixels, output_hidden_states=True)
    last = config.feature_layer == -1 and config.has_post_norm
    hidden = output.last_hidden_state if last else output.hidden_states[config.feature_layer]
    return hidden[:, 1 + getattr(config, "registers", 0) :]


def saved(theirs: Any, folder: Path, gradients: bool = False) -> dict[str, torch.Tensor]:
    """Weights, or gradients in their place, under the names that checkpoints have."""
    if gradients:
        with torch.no_grad():
            for param in theirs.parameters():
                param.copy_(torch.zeros_like(param) if param.grad is None else param.grad)
    theirs.save_pretrained(folder)
    return load_file(folder / "model.safetensors")
