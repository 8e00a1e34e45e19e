"""Projectors alone, against transformers or a plain reference: outputs, gradients, names; and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from loongforge.components.sharding import fill_parameters, gather_parameters
from loongforge.model.checks import model_problems
from loongforge.model.flops import image_tokens
from loongforge.parallel.layout import Layout
from tests.components.hf_models import randomise
from tests.support.tiny import IMAGE_TOKEN, tiny_config

IN, OUT, FEATURES, IMAGES = 48, 64, 16, 3


class Shuffled(torch.nn.Module):
    """InternVL's projector with the shuffle that its model does before it."""

    def __init__(self) -> None:
        from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector

        super().__init__()
        sizes: Any = dict(vision_config=SimpleNamespace(hidden_size=IN), text_config=SimpleNamespace(hidden_size=OUT))
        config: Any = SimpleNamespace(downsample_ratio=0.5, projector_hidden_act="gelu", **sizes)
        self.whole = InternVLMultiModalProjector(config)
        self.shuffle = InternVLModel.pixel_shuffle

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        grid = self.shuffle(self, features.unflatten(1, (4, 4)), scale_factor=0.5)
        return self.whole(grid.flatten(1, 2))


class VisualChatLayer(torch.nn.Module):
    """A layer of transformers' CLIP, a map, a norm."""

    def __init__(self) -> None:
        from transformers import CLIPVisionConfig
        from transformers.models.clip.modeling_clip import CLIPEncoderLayer

        super().__init__()
        config = CLIPVisionConfig(hidden_size=IN, intermediate_size=96, num_attention_heads=4)
        config._attn_implementation = "eager"
        self.layer = CLIPEncoderLayer(config)
        self.linear, self.norm = torch.nn.Linear(IN, OUT), torch.nn.LayerNorm(OUT, eps=1e-12)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        found = self.layer(features, attention_mask=None)
        return self.norm(self.linear(found[0] if isinstance(found, tuple) else found))


class PlainPerceiver(torch.nn.Module):
    """With torch's own attention and a loop over cells for positions."""

    def __init__(self) -> None:
        super().__init__()
        self.query = torch.nn.Parameter(torch.empty(9, OUT))
        self.kv_proj = torch.nn.Linear(IN, OUT, bias=False)
        self.ln_q, self.ln_kv, self.ln_post = (torch.nn.LayerNorm(OUT, eps=1e-6) for _ in range(3))
        self.attn, self.proj = torch.nn.MultiheadAttention(OUT, 4), torch.nn.Linear(OUT, OUT)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        values = self.ln_kv(self.kv_proj(features.transpose(0, 1)))
        positions = torch.stack([_position(row, column) for row in range(3) for column in range(3)])
        image = positions.unflatten(0, (3, 3)).permute(2, 0, 1)[None]
        of_keys = F.interpolate(image, size=(4, 4), mode="bicubic", align_corners=False)[0].flatten(1).T
        queries = (self.ln_q(self.query) + positions)[:, None].expand(-1, len(features), -1)
        attended, _ = self.attn(queries, values + of_keys[:, None], values)
        return self.proj(self.ln_post(attended)).transpose(0, 1)


def _position(row: int, column: int) -> torch.Tensor:
    rates = [10000 ** -(i / (OUT // 4)) for i in range(OUT // 4)]
    parts = [f(torch.tensor(place * rate)) for place in (column, row) for f in (torch.sin, torch.cos) for rate in rates]
    return torch.stack(parts)


class Idefics(torch.nn.Module):
    """Idefics' resampler, and the map behind it."""

    def __init__(self) -> None:
        from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

        super().__init__()
        config: Any = SimpleNamespace(
            perceiver_config=SimpleNamespace(qk_layer_norms_perceiver=False),
            vision_config=SimpleNamespace(embed_dim=IN),
        )
        self.whole = IdeficsPerceiverResampler(config, IN, depth=3, n_heads=4, head_dim=8, n_latents=5)
        self.output = torch.nn.Linear(IN, OUT)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.output(self.whole(features))


REFERENCES: dict[str, tuple[Callable[[], torch.nn.Module], dict[str, Any]]] = {
    "pixel_shuffle": (Shuffled, {}),
    "vit": (VisualChatLayer, {}),
    "perceiver": (PlainPerceiver, {}),
    "resampler": (Idefics, dict(depth=3)),
}


def _state(module: torch.nn.Module, value: Callable[[torch.nn.Parameter], Any]) -> dict[str, torch.Tensor]:
    """By the names that folders have: without `whole.`, q, k and v of torch's attention apart."""
    found = {}
    for name, param in module.named_parameters():
        name, tensor = name.removeprefix("whole."), value(param)
        if "in_proj" in name:
            kind = name.rpartition("_")[2]
            found.update({f"attn.{part}_proj.{kind}": t for part, t in zip("qkv", tensor.chunk(3), strict=True)})
        else:
            found[name] = tensor
    return found


def _pair(kind: str, groups: Any) -> tuple[Any, Any, torch.nn.Module]:
    """Name map, our projector, the reference; with equal weights."""
    from loongforge.model.assembly import build_model

    make, changes = REFERENCES[kind]
    config = tiny_config(
        projector=kind, projector_changes=changes, vision_changes=dict(hidden_size=IN, image_size=64), hidden_size=OUT
    )
    theirs, names = randomise(make(), 1), config.model.projector.name_map()  # type: ignore[union-attr]
    ours = build_model(config, groups, image_token=IMAGE_TOKEN).projector
    state = _state(theirs, lambda param: param.detach())

    def full(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = names.full_tensor(name, lambda keys: next(state[key] for key in keys if key in state))
        assert tuple(tensor.shape) == shape, name
        return tensor

    assert ours is not None
    fill_parameters(ours, full, ours.tp_group)
    return names, ours, theirs


def _run(module: torch.nn.Module, features: torch.Tensor, *, ours: bool) -> torch.Tensor:
    return module(features.transpose(0, 1)).transpose(0, 1) if ours else module(features)


@pytest.mark.parametrize("kind", REFERENCES)
def test_outputs_and_gradients_equal_the_reference(kind: str, groups: Any) -> None:
    names, ours, theirs = _pair(kind, groups)
    features = torch.randn(IMAGES, FEATURES, IN, generator=torch.Generator().manual_seed(2))
    mine, other = features.clone().requires_grad_(), features.clone().requires_grad_()
    found, expected = _run(ours, mine, ours=True), _run(theirs, other, ours=False)
    assert found.shape == expected.shape
    assert expected.std() > 0.3
    assert (found - expected).abs().max() < 1e-4
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert mine.grad is not None
    assert other.grad is not None
    assert (mine.grad - other.grad).norm() < 1e-4 * other.grad.norm()
    reference = _state(theirs, lambda param: param.grad)
    total = torch.stack([grad.norm() for grad in reference.values()]).norm()
    gradients = names.to_hf(gather_parameters(ours, ours.tp_group, lambda param: param.grad))
    gradients = {name.rpartition("multi_modal_projector.")[2]: tensor for name, tensor in gradients.items()}
    assert set(gradients) == set(reference)
    for name, gradient in gradients.items():
        assert (gradient - reference[name]).norm() / max(reference[name].norm(), 1e-4 * total) < 1e-3, name


@pytest.mark.parametrize("kind", REFERENCES)
def test_names_map_both_ways(kind: str, groups: Any) -> None:
    names, ours, theirs = _pair(kind, groups)
    state = _state(theirs, lambda param: param.detach())
    back = names.to_hf(gather_parameters(ours, ours.tp_group))
    assert {name.rpartition("multi_modal_projector.")[2] for name in back} == set(state)
    assert all(torch.equal(part, state[name.rpartition("multi_modal_projector.")[2]]) for name, part in back.items())


FAULTS = {"pixel_shuffle": "norm.weight", "vit": "norm.bias", "perceiver": "positions", "resampler": "queries"}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_seen(kind: str, groups: Any) -> None:
    _, ours, theirs = _pair(kind, groups)
    with torch.no_grad():
        tensor = {**dict(ours.named_parameters()), **dict(ours.named_buffers())}[FAULTS[kind]]
        tensor.view(-1)[0] += 1.0
    features = torch.randn(IMAGES, FEATURES, IN, generator=torch.Generator().manual_seed(2))
    assert (_run(ours, features, ours=True) - _run(theirs, features, ours=False)).abs().max() > 1e-3


def test_tokens_of_an_image() -> None:
    """Four features of an image, by projector."""
    expected = {"mlp": 4, "linear": 4, "vit": 4, "pixel_shuffle": 1, "perceiver": 9, "resampler": 5}
    assert {kind: image_tokens(tiny_config(projector=kind).model) for kind in expected} == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(projector="pixel_shuffle", projector_changes=dict(factor=3)), "factor=3 does not divide the grid of 2 x"),
        (dict(projector="perceiver", projector_changes=dict(num_queries=8)), "no square number; nearest: 9"),
        (dict(projector="perceiver", projector_changes=dict(num_heads=7)), "num_heads=7 does not divide"),
        (dict(projector="vit", projector_changes=dict(num_heads=5)), "num_heads=5 does not divide the encoder's"),
        (dict(projector="resampler", projector_changes=dict(depth=0)), "depth=0 must be at least 1"),
        (dict(vision="internvit", vision_changes=dict(post_norm=True, norm="rms_norm")), "post_norm=true needs"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options: dict[str, Any], words: str) -> None:
    config = tiny_config(**options)
    assert any(words in line for line in model_problems(config.model, Layout.from_model(config.model, 1)))


@pytest.mark.parametrize("kind", ["perceiver", "resampler", "vit"])
def test_heads_that_ranks_cannot_share_are_named(kind: str) -> None:
    config = tiny_config(projector=kind)
    config.model.projector.parallel.tp = 8  # type: ignore[union-attr]
    found = model_problems(config.model, Layout.from_model(config.model, 8))
    assert any("model.projector.num_heads=4 cannot be divided over parallel.tp=8" in line for line in found)
