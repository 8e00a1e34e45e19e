"""Every component, and the whole LLaVA, against transformers: logits, loss and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loongforge.components.llm.llama.config import RopeScalingConfig
from loongforge.components.sharding import fill_parameters, gather_parameters
from loongforge.config.schema import Config
from tests.support.tiny import global_batch, run_model, tiny_config

SCALING = RopeScalingConfig(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
CASES: dict[str, dict[str, Any]] = {
    "clip mlp llama": {},
    "siglip mlp llama": dict(vision="siglip", vision_changes=dict(post_norm=False)),
    "siglip before its last layer": dict(vision="siglip", vision_changes=dict(feature_layer=-2)),
    "clip, last layer": dict(vision_changes=dict(feature_layer=-1)),
    "tied": dict(tie_embeddings=True),
    "llama 3.1 rope": dict(rope_scaling=SCALING, rope_theta=5e5),
    "qwen2": dict(qkv_bias=True, norm_eps=1e-6),
    "qwen3, heads of their own width": dict(qk_norm=True, head_dim=24, norm_eps=1e-6),
    "many kv heads": dict(num_heads=8, num_kv_heads=8, hidden_size=96, mlp_hidden_size=56, num_layers=3),
}


def _ours(config: Config, groups: Any, theirs: torch.nn.Module) -> Any:
    from loongforge.model.assembly import build_model
    from tests.support.tiny import IMAGE_TOKEN

    model = build_model(config, groups, image_token=IMAGE_TOKEN)
    state = theirs.state_dict()

    def get(candidates: list[str]) -> torch.Tensor:
        return next(state[name] for name in candidates if name in state)

    for name, part in model.components().items():
        names = getattr(config.model, name).name_map()
        fill_parameters(part, lambda key, shape, names=names: names.full_tensor(key, get).reshape(shape), part.tp_group)
    return model.train()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_llava_equals_transformers(name: str, seed: int, groups: Any) -> None:
    from tests.components.hf_models import llava

    config = tiny_config(**CASES[name])
    theirs = llava(config.model, seed)
    ours = _ours(config, groups, theirs)
    batch = global_batch(seed)
    hidden = run_model(ours, batch)
    samples, length = batch.tokens.shape
    logits = ours.llm.logits(hidden, torch.arange(samples * length)).view(length, samples, -1).transpose(0, 1)
    expected = theirs(input_ids=batch.tokens, pixel_values=batch.images).logits
    assert (logits - expected).abs().max() < 1e-4
    assert (logits - expected).abs().mean() < 1e-5
    loss = ours.losses(hidden, batch).mean()
    expected_loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), batch.labels.flatten())
    assert abs(loss - expected_loss) < 1e-5
    loss.backward()
    expected_loss.backward()
    assert not gradient_differences(config, ours, theirs)


def gradient_differences(config: Config, ours: Any, theirs: torch.nn.Module) -> list[str]:
    """Parameters whose gradients differ by more than 1e-3, relative; tiny ones are held against the whole."""
    expected = {name: param.grad for name, param in theirs.named_parameters() if param.grad is not None}
    total = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    found, seen = [], set()
    for name, part in ours.components().items():
        names = getattr(config.model, name).name_map()
        full = gather_parameters(part, part.tp_group, lambda param: param.grad)
        for key in full:
            parts = names.to_hf({key: full[key]})
            for gradient, candidates in zip(parts.values(), names.sources(key), strict=True):
                theirs_name = next(candidate for candidate in candidates if candidate in expected)
                seen.add(theirs_name)
                reference = expected[theirs_name]
                error = (gradient.view_as(reference) - reference).norm() / max(reference.norm(), 1e-4 * total)
                if error > 1e-3:
                    found.append(f"{theirs_name}: {error:.2e}")
    return found + [f"{missing}: never compared" for missing in set(expected) - seen]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_vision_tower_alone(kind: str, groups: Any) -> None:
    """Features against the tower's own model: CLIP without its class token, SigLIP after its last norm."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

    from loongforge.model.assembly import build_model
    from tests.components.hf_models import randomise
    from tests.support.tiny import IMAGE_TOKEN

    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4)
    images = dict(image_size=32, patch_size=16)
    if kind == "clip":
        theirs = randomise(CLIPVisionModel(CLIPVisionConfig(projection_dim=8, **sizes, **images)), 5)
    else:
        theirs = randomise(SiglipVisionModel(SiglipVisionConfig(vision_use_head=False, **sizes, **images)), 5)
    config = tiny_config(vision=kind)
    tower = build_model(config, groups, image_token=IMAGE_TOKEN).vision
    names, state = config.model.vision.name_map(), theirs.state_dict()  # type: ignore[union-attr]

    def full(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return names.full_tensor(name, lambda keys: next(state[key] for key in keys if key in state)).reshape(shape)

    fill_parameters(tower, full, tower.tp_group)
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    output = theirs(pixel_values=pixels, output_hidden_states=True)
    expected = output.hidden_states[-2][:, 1:] if kind == "clip" else output.last_hidden_state
    assert (tower(pixels).transpose(0, 1) - expected).abs().max() < 1e-4


def test_a_fault_is_seen(groups: Any) -> None:
    """Exchanged gate and up projections, a wrong epsilon of no effect on logits: the first must be seen."""
    from tests.components.hf_models import llava

    config = tiny_config()
    theirs = llava(config.model)
    ours = _ours(config, groups, theirs)
    with torch.no_grad():
        weight = ours.llm.decoder.layers[0].mlp.linear_fc1.weight
        weight.copy_(torch.cat(list(reversed(weight.chunk(2)))))
    batch = global_batch(0)
    ours.losses(run_model(ours, batch), batch).mean().backward()
    expected = theirs(input_ids=batch.tokens, pixel_values=batch.images).logits
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), batch.labels.flatten()).backward()
    assert gradient_differences(config, ours, theirs)


@pytest.mark.parametrize("name", CASES)
def test_names_map_both_ways(name: str, groups: Any) -> None:
    """From transformers and back: every tensor bit-identical."""
    from tests.components.hf_models import llava

    config = tiny_config(**CASES[name])
    theirs = llava(config.model)
    ours = _ours(config, groups, theirs)
    state = theirs.state_dict()
    for part_name, part in ours.components().items():
        names = getattr(config.model, part_name).name_map()
        for key, tensor in gather_parameters(part, part.tp_group).items():
            for back, candidates in zip(names.to_hf({key: tensor}).values(), names.sources(key), strict=True):
                original = next(state[candidate] for candidate in candidates if candidate in state)
                assert torch.equal(back.view_as(original), original), key


@pytest.mark.parametrize("name", ["clip mlp llama", "siglip mlp llama", "qwen3, heads of their own width", "tied"])
def test_init_from_a_saved_folder(name: str, groups: Any, tmp_path: Any) -> None:
    """What `save_pretrained` writes is read under its own names, by component."""
    from loongforge.model.assembly import build_model
    from loongforge.training.weights import load_initial_weights
    from tests.components.hf_models import llava
    from tests.support.tiny import IMAGE_TOKEN

    config = tiny_config(**CASES[name])
    theirs = llava(config.model)
    theirs.save_pretrained(tmp_path / "whole", max_shard_size="100KB")
    for part in ("vision", "projector", "llm"):
        getattr(config.model, part).init_from = str(tmp_path / "whole")
    model = build_model(config, groups, image_token=IMAGE_TOKEN)
    load_initial_weights(config, model, groups)
    batch = global_batch(0)
    expected = _ours(config, groups, theirs)
    assert torch.equal(run_model(model, batch), run_model(expected, batch))


def test_init_from_says_what_is_wrong(groups: Any, tmp_path: Any) -> None:
    from loongforge.config.errors import UserError
    from loongforge.model.assembly import build_model
    from loongforge.training.weights import load_initial_weights
    from tests.components.hf_models import llava
    from tests.support.tiny import IMAGE_TOKEN

    theirs = llava(tiny_config().model)
    theirs.save_pretrained(tmp_path / "whole")
    for options, words in ((dict(mlp_hidden_size=128), "mlp_hidden_size"), (dict(qk_norm=True), "qk_norm")):
        config = tiny_config(**options)
        config.model.llm.init_from = str(tmp_path / "whole")
        model = build_model(config, groups, image_token=IMAGE_TOKEN)
        with pytest.raises(UserError, match=words):
            load_initial_weights(config, model, groups)
