"""`init_from` folders of single towers and language models, and the three spellings of a LLaVA's names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    LlamaForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
)

from loongforge.components.llm.llama.config import RopeScalingConfig
from loongforge.config.errors import UserError
from loongforge.config.schema import Config
from tests.components.hf_models import llava, randomise, text_config
from tests.support.tiny import IMAGE_TOKEN, global_batch, run_model, tiny_config

SCALING = RopeScalingConfig(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
TEXT: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, {}),
    "llama tied": (LlamaForCausalLM, dict(tie_embeddings=True)),
    "llama 3.1": (LlamaForCausalLM, dict(rope_scaling=SCALING, rope_theta=5e5)),
    "qwen2": (Qwen2ForCausalLM, dict(qkv_bias=True, norm_eps=1e-6)),
    "qwen3": (Qwen3ForCausalLM, dict(qk_norm=True, head_dim=24, norm_eps=1e-6, tie_embeddings=True)),
}


def _loaded(config: Config, groups: Any) -> Any:
    from loongforge.model.assembly import build_model
    from loongforge.training.weights import load_initial_weights

    model = build_model(config, groups, image_token=IMAGE_TOKEN if config.model.vision else None)
    load_initial_weights(config, model, groups)
    return model


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", TEXT)
def test_language_model_alone(name: str, seed: int, groups: Any, tmp_path: Path) -> None:
    cls, options = TEXT[name]
    config = tiny_config(**options)
    config.model.vision = config.model.projector = None
    theirs = randomise(cls(text_config(config.model)), seed)
    theirs.save_pretrained(tmp_path)
    config.model.llm.init_from = str(tmp_path)
    batch = global_batch(seed)
    batch.images = batch.images[:0]
    model = _loaded(config, groups)
    hidden = run_model(model, batch)
    samples, length = batch.tokens.shape
    logits = model.llm.logits(hidden, torch.arange(samples * length)).view(length, samples, -1).transpose(0, 1)
    expected = theirs(input_ids=batch.tokens).logits
    assert (logits - expected).abs().max() < 1e-4
    expected_loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), batch.labels.flatten())
    assert abs(model.losses(hidden, batch).mean() - expected_loss) < 1e-5


SIZES = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4)
IMAGES = dict(image_size=32, patch_size=16)


def _tower(name: str) -> Any:
    vision = SIZES | IMAGES
    if name == "clip, both towers":
        return CLIPModel(CLIPConfig(vision_config=vision, text_config=SIZES, projection_dim=8))
    if name == "clip":
        return CLIPVisionModel(CLIPConfig(vision_config=vision).vision_config)
    both = SiglipConfig(vision_config=vision | dict(vision_use_head=False), text_config=SIZES)
    return SiglipModel(both) if name == "siglip, both towers" else SiglipVisionModel(both.vision_config)


@pytest.mark.parametrize("layer", [-1, -2, -3])
@pytest.mark.parametrize("name", ["clip", "clip, both towers", "siglip", "siglip, both towers"])
def test_vision_tower_alone(name: str, layer: int, groups: Any, tmp_path: Path) -> None:
    """Any hidden state; SigLIP's last one after the last norm."""
    kind = name.split(",")[0]
    theirs = randomise(_tower(name), 5)
    theirs.save_pretrained(tmp_path)
    config = tiny_config(vision=kind, vision_changes=dict(feature_layer=layer, init_from=str(tmp_path)))
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ours = _loaded(config, groups).vision(pixels).transpose(0, 1)
    tower = theirs.vision_model if hasattr(theirs, "vision_model") else theirs
    output = tower(pixel_values=pixels, output_hidden_states=True)
    expected = output.hidden_states[layer]
    if kind == "siglip" and layer == -1:
        expected = output.last_hidden_state
    assert (ours - expected[:, int(kind == "clip") :]).abs().max() < 1e-4


def test_projector_alone(groups: Any, tmp_path: Path) -> None:
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    config = tiny_config()
    theirs = randomise(LlavaMultiModalProjector(llava(config.model).config), 2)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    config.model.projector.init_from = str(tmp_path)  # type: ignore[union-attr]
    features = torch.randn(7, 4, 64, generator=torch.Generator().manual_seed(1))
    assert (_loaded(config, groups).projector(features) - theirs(features)).abs().max() < 1e-5


def _as_on_the_hub(name: str) -> str:
    """llava-hf/llava-1.5-7b-hf: written before transformers moved the language model and the towers."""
    name = name.removeprefix("model.")
    name = re.sub(r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name)
    if name.startswith("lm_head"):
        return "language_model." + name
    return re.sub(r"^language_model\.", "language_model.model.", name)


SPELLINGS: dict[str, Callable[[str], str]] = {
    "in memory": lambda name: name,
    "on the hub": _as_on_the_hub,
    "without the first word": lambda name: name.removeprefix("model."),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("vision", ["clip", "siglip"])
def test_every_spelling_of_a_llava(vision: str, spelling: str, groups: Any, tmp_path: Path) -> None:
    config = tiny_config(vision=vision, vision_changes=dict(post_norm=False) if vision == "siglip" else None)
    theirs = llava(config.model)
    state = {SPELLINGS[spelling](name): tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    for part in ("vision", "projector", "llm"):
        getattr(config.model, part).init_from = str(tmp_path)
    batch = global_batch(0)
    model = _loaded(config, groups)
    logits, _ = model.label_logits(run_model(model, batch), batch.labels)
    expected = theirs(input_ids=batch.tokens, pixel_values=batch.images).logits[batch.labels != -100]
    assert (logits - expected).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("fault", ["gate and up", "q and k", "heads", "patch colours", "norm + 1"])
def test_a_fault_changes_the_logits(fault: str, groups: Any, tmp_path: Path) -> None:
    """What a wrong name map would do is far beyond the tolerance of the comparisons above."""
    config = tiny_config(num_kv_heads=4)
    llava(config.model).save_pretrained(tmp_path)
    for part in ("vision", "projector", "llm"):
        getattr(config.model, part).init_from = str(tmp_path)
    model, batch = _loaded(config, groups), global_batch(0)
    before, _ = model.label_logits(run_model(model, batch), batch.labels)
    layer = model.llm.decoder.layers[0]
    qkv = layer.self_attention.linear_qkv.weight
    if fault == "gate and up":
        layer.mlp.linear_fc1.weight.copy_(layer.mlp.linear_fc1.weight.roll(96, 0))
    elif fault == "q and k":
        qkv.copy_(qkv.view(4, 3, 16, 64)[:, [1, 0, 2]].reshape_as(qkv))
    elif fault == "heads":
        qkv.copy_(qkv.view(4, 3, 16, 64).transpose(0, 1).reshape_as(qkv))
    elif fault == "patch colours":
        patch = model.vision.patch_embedding.weight
        patch.copy_(patch.view(64, 3, 256).flip(1).reshape_as(patch))
    else:
        layer.input_layernorm.weight.add_(1)
    after, _ = model.label_logits(run_model(model, batch), batch.labels)
    assert (after - before).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(mlp_hidden_size=128), r"model\.llm\.mlp_hidden_size=128, but .*config.json says 96"),
        (dict(vocab_size=252), r"model\.embed_tokens\.weight' has shape \[256, 64\].*\[252, 64\]; .* not shrink"),
        (dict(num_kv_heads=1), r"num_kv_heads=1, but .*config.json says 2"),
        (dict(num_layers=6), r"num_layers=6, but .*config.json says 4"),
        (dict(norm_eps=1e-6), r"norm_eps=1e-06, but .*config.json says 1e-05"),
        (dict(rope_theta=5e5), r"rope_theta=500000.0, but .*config.json says 10000.0"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], words: str, groups: Any, tmp_path: Path) -> None:
    randomise(LlamaForCausalLM(text_config(tiny_config().model)), 0).save_pretrained(tmp_path)
    config = tiny_config(**changes)
    config.model.llm.init_from = str(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        _loaded(config, groups)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "options", "left"),
    [
        (Qwen2ForCausalLM, dict(qkv_bias=True), "qkv_bias"),
        (Qwen3ForCausalLM, dict(qk_norm=True), "qk_norm"),
    ],
)
def test_another_kind_of_decoder_is_refused(
    cls: Any, options: dict[str, Any], left: str, groups: Any, tmp_path: Path
) -> None:
    """Qwen's weights in a Llama would train, and be another model."""
    randomise(cls(text_config(tiny_config(**options).model)), 0).save_pretrained(tmp_path)
    config = tiny_config()
    config.model.llm.init_from = str(tmp_path)
    with pytest.raises(UserError, match=rf"model\.llm\.{left}=False, but .*config.json says True"):
        _loaded(config, groups)


def test_rotary_buffers_of_older_checkpoints_are_no_weights(groups: Any, tmp_path: Path) -> None:
    config = tiny_config()
    theirs = randomise(LlamaForCausalLM(text_config(config.model)), 0)
    state = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    save_file(state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    config.model.llm.init_from = str(tmp_path)
    _loaded(config, groups)
