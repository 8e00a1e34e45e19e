"""Low-rank adapters against peft: logits, gradients, export, merging; targets that match nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loongforge.components.lora import merged, to_peft
from loongforge.components.sharding import fill_parameters, gather_parameters
from loongforge.config.errors import UserError
from loongforge.config.schema import LoraConfig
from tests.support.tiny import global_batch, tiny_config

TARGETS = {
    "q and v": ["q_proj", "v_proj"],
    "one layer": ["layers.1.self_attn.k_proj", "layers.1.mlp.*"],
    "everything": ["all-linear"],
}


def _models(targets: list[str], groups: Any) -> tuple[Any, Any, LoraConfig, Any]:
    """Our language model with random adapters, and the transformers model with the same ones under peft."""
    import peft
    from transformers import LlamaForCausalLM

    from loongforge.model.assembly import build_model
    from tests.components.hf_models import randomise, text_config

    settings = LoraConfig(rank=3, alpha=5.0, targets=targets)
    config = tiny_config(lora=settings)
    base = randomise(LlamaForCausalLM(text_config(config.model)), 0)
    llm = build_model(config, groups, image_token=3).llm
    names, state = config.model.llm.name_map(), base.state_dict()  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(7)

    def full(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if ".lora." in name:
            return torch.randn(shape, generator=generator) / shape[1] ** 0.5
        return names.full_tensor(name, lambda keys: next(state[key] for key in keys if key in state)).reshape(shape)

    fill_parameters(llm, full, llm.tp_group)
    adapters = to_peft(gather_parameters(llm, llm.tp_group), settings, names)
    modules = sorted({name.rpartition(".lora_")[0] for name in adapters})
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=5.0, target_modules=modules))
    wrapped = {f"base_model.model.{name}": tensor for name, tensor in adapters.items()}
    peft.set_peft_model_state_dict(theirs, wrapped)
    return llm, theirs, settings, names


def _logits(llm: Any, tokens: torch.Tensor) -> torch.Tensor:
    from loongforge.components.transformer.sequence import SequenceView

    samples, length = tokens.shape
    hidden = llm(llm.embed(tokens), SequenceView(torch.arange(length), length))
    return llm.logits(hidden, torch.arange(samples * length)).view(length, samples, -1).transpose(0, 1)


@pytest.mark.parametrize("case", TARGETS)
def test_adapters_equal_pefts(case: str, groups: Any) -> None:
    llm, theirs, settings, names = _models(TARGETS[case], groups)
    tokens = global_batch(0).tokens
    ours, expected = _logits(llm, tokens), theirs(input_ids=tokens).logits
    assert (ours - expected).abs().max() < 1e-4
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    (ours * weights).mean().backward()
    (expected * weights).mean().backward()
    gradients = gather_parameters(llm, llm.tp_group, lambda param: param.grad)
    assert all(".lora." in name for name in gradients), "only adapters train"
    found = to_peft(gradients, settings, names)
    reference = {
        name.removeprefix("base_model.model.").replace(".default", ""): param.grad
        for name, param in theirs.named_parameters()
        if param.grad is not None
    }
    assert found.keys() == reference.keys()
    for name, gradient in reference.items():
        assert (found[name] - gradient).norm() < 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("case", TARGETS)
def test_merged_weights_give_the_same_logits(case: str, groups: Any) -> None:
    from loongforge.model.assembly import build_model

    llm, theirs, settings, names = _models(TARGETS[case], groups)
    tokens = global_batch(1).tokens
    plain = build_model(tiny_config(), groups, image_token=3).llm
    weights = merged(gather_parameters(llm, llm.tp_group), settings, names)
    fill_parameters(plain, lambda name, shape: weights[name], plain.tp_group)
    with torch.no_grad():
        assert (_logits(plain, tokens) - theirs(input_ids=tokens).logits).abs().max() < 1e-4


def test_new_adapters_change_nothing(groups: Any) -> None:
    from loongforge.model.assembly import build_model

    adapted, plain = (
        build_model(tiny_config(lora=settings), groups, image_token=3).llm for settings in (LoraConfig(rank=2), None)
    )
    tokens = global_batch(0).tokens
    with torch.no_grad():
        assert torch.equal(_logits(adapted, tokens), _logits(plain, tokens))


def test_dropout_leaves_out_inputs_in_training_only(groups: Any) -> None:
    from loongforge.model.assembly import build_model

    llm = build_model(tiny_config(lora=LoraConfig(rank=2, dropout=0.5)), groups, image_token=3).llm
    fill_parameters(llm, lambda name, shape: torch.ones(shape) * 0.1, llm.tp_group)
    tokens = global_batch(0).tokens
    with torch.no_grad():
        llm.eval()
        assert torch.equal(_logits(llm, tokens), _logits(llm, tokens))
        llm.train()
        assert not torch.equal(_logits(llm, tokens), _logits(llm, tokens))


def test_a_target_that_matches_nothing_is_named(groups: Any) -> None:
    from loongforge.model.assembly import build_model

    config = tiny_config(lora=LoraConfig(targets=["q_proj", "q_prj"]))
    with pytest.raises(UserError, match=r"model.llm.lora.targets: .*'q_prj'.*q_proj"):
        build_model(config, groups, image_token=3)


@pytest.mark.parametrize("case", TARGETS)
@pytest.mark.parametrize(
    "options",
    [dict(), dict(qkv_bias=True, qk_norm=True, head_dim=24), dict(num_experts=4, dense_layers=[1])],
    ids=["llama", "qwen", "experts"],
)
def test_sizes_are_those_of_the_modules(case: str, options: dict[str, Any], groups: Any) -> None:
    """What a plan counts without building anything."""
    from loongforge.model.assembly import build_model

    config = tiny_config(lora=LoraConfig(rank=3, targets=TARGETS[case]), **options)
    built = build_model(config, groups, image_token=3).llm
    found = {name: param.numel() for name, param in built.named_parameters() if param.requires_grad}
    sizes = config.model.llm.adapter_sizes()  # type: ignore[attr-defined]
    assert {name: size.numbers for name, size in sizes.items()} == found
