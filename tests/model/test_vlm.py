"""The composed model: where image features go, what padding changes, what a frozen part keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loongforge.config.schema import Config, LoraConfig
from tests.support.tiny import IMAGE_TOKEN, NUM_PATCHES, global_batch, image_rows, run_model, tiny_config


def _build(config: Config, groups: Any) -> Any:
    from loongforge.model.assembly import build_model

    return build_model(config, groups, image_token=IMAGE_TOKEN)


@torch.no_grad()
def test_features_replace_image_tokens_in_order(groups: Any) -> None:
    model, batch = _build(tiny_config(), groups), global_batch(0)
    embedded = model.embed(batch.tokens, image_rows(model, batch.images)).transpose(0, 1)  # [B, S, H]
    is_image = batch.tokens == IMAGE_TOKEN
    features = torch.cat([image_rows(model, image[None]) for image in batch.images])
    assert torch.allclose(embedded[is_image], features, atol=1e-5)
    assert torch.equal(embedded[~is_image], model.llm.embed(batch.tokens).transpose(0, 1)[~is_image])
    assert not torch.allclose(features[:NUM_PATCHES], features[NUM_PATCHES : 2 * NUM_PATCHES], atol=1e-2)


@torch.no_grad()
def test_padding_and_neighbours_change_nothing(groups: Any) -> None:
    model, batch = _build(tiny_config(), groups), global_batch(0)
    alone = model.losses(run_model(model, batch), batch)
    batch.tokens = torch.cat([batch.tokens, torch.full((8, 5), 7)], 1)
    batch.labels = torch.cat([batch.labels, torch.full((8, 5), -100)], 1)
    assert torch.allclose(model.losses(run_model(model, batch), batch), alone, atol=1e-5)
    row = global_batch(0)
    row.tokens, row.labels, row.images = row.tokens[2:3], row.labels[2:3], row.images[1:2]
    count = int((global_batch(0).labels[:2] != -100).sum())
    assert torch.allclose(model.losses(run_model(model, row), row), alone[count : count + 3], atol=1e-5)


@pytest.mark.parametrize("frozen", ["vision", "projector", "llm"])
def test_a_frozen_part_has_no_gradient_and_the_others_keep_theirs(frozen: str, groups: Any) -> None:
    def gradients(config: Config) -> dict[str, torch.Tensor | None]:
        model, batch = _build(config, groups), global_batch(0)
        model.losses(run_model(model, batch), batch).mean().backward()
        return {name: param.grad for name, param in model.named_parameters()}

    whole, config = gradients(tiny_config()), tiny_config()
    getattr(config.model, frozen).freeze = True
    for name, gradient in gradients(config).items():
        if name.startswith(f"{frozen}."):
            assert gradient is None, name
        else:
            assert gradient is not None, name
            assert torch.allclose(gradient, whole[name], atol=1e-6), name  # type: ignore[arg-type]


def test_recompute_changes_no_gradient(groups: Any) -> None:
    found = []
    for recompute in ("none", "full"):
        config = tiny_config()
        config.trainer.recompute = recompute  # type: ignore[assignment]
        model, batch = _build(config, groups).train(), global_batch(0)
        model.losses(run_model(model, batch), batch).mean().backward()
        found.append([param.grad for param in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("part", ["vision", "llm", "adapters"])
def test_recomputed_layers_behind_frozen_ones_learn(groups: Any, part: str) -> None:
    """megatron-core's checkpoints give no gradient to layers whose input needs none."""
    found = []
    for recompute in ("none", "full"):
        config = tiny_config()
        config.trainer.recompute = recompute  # type: ignore[assignment]
        name = "vision" if part == "vision" else "llm"
        component: Any = getattr(config.model, name)
        component.freeze, component.train = True, [] if part == "adapters" else ["layers.1"]
        component.lora = LoraConfig(rank=2) if part == "adapters" else None
        others: list[Any] = [config.model.vision, config.model.projector, config.model.llm]
        for other in others[: others.index(component)]:
            other.freeze = True
        model, batch = _build(config, groups).train(), global_batch(0)
        model.losses(run_model(model, batch), batch).mean().backward()
        found.append([param.grad for key, param in model.named_parameters() if param.requires_grad and name in key])
    plain, recomputed = found
    assert len(plain) > 5 and all(grad is not None for grad in [*plain, *recomputed])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, recomputed, strict=True))
