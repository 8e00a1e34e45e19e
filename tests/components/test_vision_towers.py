"""InternViT and DINOv2 against transformers: features, every gradient, names both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loongforge.components.sharding import fill_parameters, gather_parameters
from loongforge.config.schema import Config
from tests.components.vision_towers import TOWERS, features, saved, tower
from tests.support.tiny import IMAGE_TOKEN, tiny_config

UNUSED = {"embeddings.mask_token"}  # of masked pre-training


def _config(name: str) -> Config:
    kind, changes = TOWERS[name]
    return tiny_config(vision=kind, vision_changes=changes)


def _ours(config: Config, groups: Any, state: dict[str, torch.Tensor]) -> Any:
    from loongforge.model.assembly import build_model

    vision: Any = config.model.vision
    built, names = build_model(config, groups, image_token=IMAGE_TOKEN).vision, vision.name_map()

    def full(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        found = names.full_tensor(name, lambda keys: next(state[key] for key in keys if key in state))
        assert tuple(found.shape) == shape, name
        return found

    fill_parameters(built, full, built.tp_group)
    return built


@pytest.mark.parametrize("name", TOWERS)
def test_features_and_gradients_equal_transformers(name: str, groups: Any, tmp_path: Path) -> None:
    config = _config(name)
    theirs = tower(config.model.vision, 3)
    state = saved(theirs, tmp_path)
    ours = _ours(config, groups, state)
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found, expected = ours(pixels).transpose(0, 1), features(theirs, config.model.vision, pixels)
    assert expected.std() > 0.2
    assert (found - expected).abs().max() < 1e-4
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    _compare_gradients(config, ours, saved(theirs, tmp_path, gradients=True), set(state))


def _compare_gradients(config: Config, ours: Any, expected: dict[str, torch.Tensor], names: set[str]) -> None:
    vision: Any = config.model.vision
    full = gather_parameters(ours, ours.tp_group, lambda param: param.grad)
    found = vision.name_map().to_hf(full)
    total = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in found.items():
        difference = (gradient - expected[name]).norm() / max(expected[name].norm(), 1e-4 * total)
        assert difference < 1e-3, name
    left_out = {name for name in names - set(found) - UNUSED if expected[name].any()}
    assert not left_out


@pytest.mark.parametrize("name", TOWERS)
def test_names_map_both_ways(name: str, groups: Any, tmp_path: Path) -> None:
    config = _config(name)
    state = saved(tower(config.model.vision, 4), tmp_path)
    ours = _ours(config, groups, state)
    back = config.model.vision.name_map().to_hf(gather_parameters(ours, ours.tp_group))  # type: ignore[union-attr]
    assert all(torch.equal(tensor, state[key]) for key, tensor in back.items())


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("internvit", "decoder.layers.1.self_attn_bda.weight"),
        ("internvit, RMSNorm, q and k norm", "decoder.layers.0.self_attention.k_layernorm.weight"),
        ("dinov2, registers, SwiGLU", "registers"),
    ],
)
def test_a_fault_is_seen(name: str, parameter: str, groups: Any, tmp_path: Path) -> None:
    config = _config(name)
    theirs = tower(config.model.vision, 3)
    ours = _ours(config, groups, saved(theirs, tmp_path))
    with torch.no_grad():
        dict(ours.named_parameters())[parameter].view(-1)[0] += 1.0
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    difference = ours(pixels).transpose(0, 1) - features(theirs, config.model.vision, pixels)
    assert difference.abs().max() > 1e-3
