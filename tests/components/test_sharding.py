"""Shards and names: slices that join again, first weights that no layout changes, parameter counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loongforge.components.sharding import (
    draw_parameters,
    full_shape,
    gather_parameters,
    global_names,
    join_shards,
    take_shard,
)
from loongforge.config.schema import Config
from loongforge.model.flops import num_params
from tests.support.tiny import IMAGE_TOKEN, tiny_config


def _param(axis: int | None, shape: tuple[int, ...]) -> torch.Tensor:
    """A shard as `mark_tensor_parallel` leaves it; axis None: whole on every rank."""
    param = torch.empty(shape)
    if axis is not None:
        param.tensor_model_parallel, param.partition_dim = True, axis  # type: ignore[attr-defined]
    return param


@pytest.mark.parametrize("tp", [1, 2, 3, 4])
@pytest.mark.parametrize(("axis", "gated"), [(0, False), (1, False), (0, True), (None, False)])
def test_shards_join_to_what_they_were_taken_from(tp: int, axis: int | None, gated: bool) -> None:
    full = torch.arange(24 * 12.0).view(24, 12)
    shape = [24, 12]
    if axis is not None:
        shape[axis] //= tp
    param = _param(axis, tuple(shape))
    shards = [take_shard(full, param, rank=rank, tp=tp, gated=gated) for rank in range(tp)]
    assert all(shard.shape == param.shape for shard in shards)
    assert full_shape(param, tp) == tuple(full.shape)
    assert torch.equal(join_shards(shards, param, gated=gated), full)


def test_each_rank_holds_the_gate_and_up_of_the_same_units() -> None:
    """SwiGLU halves a rank's rows: the first half must be gates, the second the matching up projections."""
    full = torch.arange(8.0)[:, None]  # gates 0-3, ups 4-7
    param = _param(0, (4, 1))
    shards = [take_shard(full, param, rank=rank, tp=2, gated=True).flatten().tolist() for rank in range(2)]
    assert shards == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert not torch.equal(
        join_shards([take_shard(full, param, rank=r, tp=2) for r in range(2)], param, gated=True), full
    )


class _Rank(torch.nn.Module):
    """One tensor-parallel rank's shard of a gated layer: as much of a component as `draw_parameters` looks at."""

    def __init__(self, tp: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(gated_linear_unit=True)
        shapes = {"linear_fc1": ((16 // tp, 6), 0), "linear_fc2": ((6, 8 // tp), 1), "norm": ((6,), None)}
        for name, (shape, axis) in shapes.items():
            part = torch.nn.Module()
            part.weight = torch.nn.Parameter(torch.empty(shape))
            if axis is not None:
                part.weight.tensor_model_parallel, part.weight.partition_dim = True, axis  # type: ignore[attr-defined]
            self.add_module(name, part)
        self.bias = torch.nn.Parameter(torch.empty(6))
        self.linear_fc1.bias = torch.nn.Parameter(torch.empty(16))  # type: ignore[assignment]


def _drawn(tp: int, rank: int, *, component: str = "llm", seed: int = 7) -> _Rank:
    module = _Rank(tp)
    group: Any = SimpleNamespace(rank=lambda: rank, size=lambda: tp)
    draw_parameters(module, component=component, seed=seed, std=0.5, group=group)
    return module


@pytest.mark.parametrize("tp", [2, 4])
def test_first_weights_do_not_depend_on_tp(tp: int) -> None:
    whole = dict(_drawn(1, 0).named_parameters())
    ranks = [dict(_drawn(tp, rank).named_parameters()) for rank in range(tp)]
    for name, full in whole.items():
        shards = [rank[name].detach() for rank in ranks]
        joined = join_shards(shards, ranks[0][name], gated=name == "linear_fc1.weight")
        assert torch.equal(joined, full), name


def test_first_weights_depend_on_seed_component_and_name() -> None:
    base = dict(_drawn(1, 0).named_parameters())
    again, other_seed, other_part = (
        dict(_drawn(1, 0, **changes).named_parameters()) for changes in ({}, {"seed": 8}, {"component": "vision"})
    )
    first, second = "linear_fc1.weight", "linear_fc2.weight"
    assert torch.equal(base[first], again[first])
    assert not torch.equal(base[first], other_seed[first])
    assert not torch.equal(base[first], other_part[first])
    assert not torch.equal(base[first].flatten()[:48], base[second].flatten())
    assert torch.equal(base["norm.weight"], torch.ones(6))
    assert torch.equal(base["linear_fc1.bias"], torch.zeros(16))
    assert abs(base[first].std().item() - 0.5) < 0.1


def test_a_drawn_model_has_no_two_equal_weights(groups: Any) -> None:
    model = _build(tiny_config(), groups)
    seen: dict[tuple[float, ...], str] = {}
    for component, part in model.components().items():
        for name, tensor in gather_parameters(part, part.tp_group).items():
            if tensor.unique().numel() > 2:  # not a norm, not a bias
                key = tuple(tensor.flatten()[:4].tolist())
                assert key not in seen, f"{component}.{name} starts like {seen[key]}"
                seen[key] = f"{component}.{name}"
    assert len(seen) > 20


def _build(config: Config, groups: Any) -> Any:
    from loongforge.model.assembly import build_model

    return build_model(config, groups, image_token=IMAGE_TOKEN)


SIZES: dict[str, dict[str, Any]] = {
    "clip mlp llama": {},
    "clip, last layer": dict(vision_changes=dict(feature_layer=-1)),
    "clip, first layer by its number": dict(vision_changes=dict(feature_layer=1)),
    "siglip linear": dict(vision="siglip", projector="linear"),
    "siglip without its last norm": dict(vision="siglip", vision_changes=dict(post_norm=False)),
    "siglip before its last layer": dict(vision="siglip", vision_changes=dict(feature_layer=-2)),
    "siglip, a remainder of pixels": dict(
        vision="siglip", vision_changes=dict(image_size=38, drop_remainder=True, mlp_hidden_size=100)
    ),
    "internvit, pixel shuffle": dict(vision="internvit", projector="pixel_shuffle"),
    "internvit, RMSNorm, q and k norm": dict(
        vision="internvit", vision_changes=dict(norm="rms_norm", qk_norm=True, qkv_bias=False)
    ),
    "internvit, last norm": dict(vision="internvit", vision_changes=dict(post_norm=True)),
    "dinov2, perceiver": dict(vision="dinov2", projector="perceiver"),
    "dinov2 with registers and SwiGLU": dict(
        vision="dinov2", vision_changes=dict(registers=3, swiglu=True, feature_layer=-2)
    ),
    "resampler": dict(projector="resampler", vision_changes=dict(hidden_size=96), projector_changes=dict(depth=3)),
    "a ViT layer as projector": dict(projector="vit", vision_changes=dict(hidden_size=96)),
    "tied": dict(tie_embeddings=True),
    "qwen2": dict(qkv_bias=True),
    "qwen3": dict(qk_norm=True, head_dim=24),
    "everything": dict(qkv_bias=True, qk_norm=True, head_dim=8, tie_embeddings=True, num_layers=3, vocab_size=100),
}


@pytest.mark.parametrize("name", SIZES)
def test_counted_parameters_are_those_that_are_built(name: str, groups: Any) -> None:
    config = tiny_config(**SIZES[name])
    model = _build(config, groups)
    built = {part: sum(p.numel() for p in module.parameters()) for part, module in model.components().items()}
    assert num_params(config.model) == built


@pytest.mark.parametrize("options", [dict(), dict(hidden_size=40), dict(hidden_size=40, bias=False)])
def test_counted_parameters_of_the_mlp_projector(options: dict[str, Any], groups: Any) -> None:
    config = tiny_config()
    for key, value in options.items():
        setattr(config.model.projector, key, value)
    built = sum(p.numel() for p in _build(config, groups).projector.parameters())
    assert num_params(config.model)["projector"] == built


@pytest.mark.parametrize("tied", [False, True])
def test_names_count_layers_over_pipeline_stages(tied: bool, groups: Any) -> None:
    """The last of two stages: layers 0, 1 are 2, 3 of the whole; a tied output layer is the embedding."""
    llm = _build(tiny_config(tie_embeddings=tied, num_layers=2), groups).llm
    for layer in llm.decoder.layers:
        layer.layer_number += 2
    llm.output_layer.weight = torch.nn.Parameter(torch.zeros(256, 64))
    names = global_names(llm)
    assert names["decoder.layers.0.mlp.linear_fc1.weight"] == "decoder.layers.2.mlp.linear_fc1.weight"
    assert names["decoder.layers.1.mlp.linear_fc2.weight"] == "decoder.layers.3.mlp.linear_fc2.weight"
    assert names["decoder.final_layernorm.weight"] == "decoder.final_layernorm.weight"
    expected = "embedding.word_embeddings.weight" if tied else "output_layer.weight"
    assert names["output_layer.weight"] == expected
