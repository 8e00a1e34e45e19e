"""Every family of language models against transformers in one process: logits, loss, gradients, names, configs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import CONFIG_MAPPING

from loongforge.components.registry import lookup
from loongforge.components.sharding import fill_parameters, gather_parameters
from loongforge.config.errors import UserError
from loongforge.config.schema import Config
from loongforge.data.batch import Batch
from tests.components.hf_llms import FAMILIES, hf_config, hf_model, on_disk
from tests.support.tiny import VOCAB, run_model, tiny_config

LENGTH = 24


def _recipe(theirs: Any) -> Config:
    """A text-only recipe of the model that a transformers config describes."""
    config = tiny_config()
    config.model.vision = config.model.projector = None
    values = theirs.to_dict()
    config.model.llm = lookup("llm", values["model_type"]).from_hf(values)  # type: ignore[attr-defined]
    return config


def _ours(config: Config, groups: Any, theirs: torch.nn.Module) -> Any:
    from loongforge.model.assembly import build_model

    model = build_model(config, groups, image_token=None)
    state, names = on_disk(theirs.state_dict()), config.model.llm.name_map()  # type: ignore[attr-defined]

    def full(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return names.full_tensor(name, lambda keys: next(state[key] for key in keys if key in state)).reshape(shape)

    fill_parameters(model.llm, full, model.llm.tp_group)
    return model.train()


def _batch(seed: int, lengths: list[int]) -> Batch:
    """Rows padded on the right, labels on all real positions."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, VOCAB, (len(lengths), LENGTH), generator=generator)
    labels = torch.randint(4, VOCAB, tokens.shape, generator=generator)
    for row, length in enumerate(lengths):
        labels[row, length:] = -100
    return Batch(
        tokens, labels, torch.zeros(0, 3, 32, 32), torch.tensor(lengths), [str(i) for i in range(len(lengths))]
    )


def _expected(theirs: Any, batch: Batch) -> torch.Tensor:
    seen = torch.arange(LENGTH) < batch.lengths[:, None]
    return theirs(input_ids=batch.tokens, attention_mask=seen.long()).logits


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_transformers(name: str, seed: int, groups: Any) -> None:
    theirs = hf_model(name, seed)
    config = _recipe(theirs.config)
    ours, batch = _ours(config, groups, theirs), _batch(seed, [LENGTH, 17, 3])
    hidden, expected = run_model(ours, batch), _expected(theirs, batch)
    logits = ours.llm.logits(hidden, torch.arange(batch.tokens.numel())).view(LENGTH, 3, -1).transpose(0, 1)
    real = batch.labels != -100
    assert (logits - expected)[real].abs().max() < 1e-4
    assert 0.3 < expected[real].std() < 5
    loss = ours.losses(hidden, batch).mean()
    expected_loss = F.cross_entropy(expected.flatten(0, 1), batch.labels.flatten())
    assert abs(loss - expected_loss) < 1e-5
    loss.backward()
    expected_loss.backward()
    assert worst_gradient(config, ours, theirs) < 1e-4


def worst_gradient(config: Config, ours: Any, theirs: torch.nn.Module) -> float:
    """The largest relative difference of a parameter's gradients; tiny ones are held against the whole."""
    reference = on_disk({name: param.grad for name, param in theirs.named_parameters() if param.grad is not None})
    total = torch.stack([gradient.norm() for gradient in reference.values()]).norm()
    names = config.model.llm.name_map()  # type: ignore[attr-defined]
    found = names.to_hf(gather_parameters(ours.llm, ours.llm.tp_group, lambda param: param.grad))
    assert set(found) == set(reference)
    return max(
        float((found[name].view_as(grad) - grad).norm() / max(grad.norm(), 1e-4 * total))
        for name, grad in reference.items()
    )


@pytest.mark.parametrize("name", ["mistral v0.1", "qwen2, a window in some layers", "qwen2.5 long"])
def test_packed_documents_equal_rows_of_their_own(name: str, groups: Any) -> None:
    theirs = hf_model(name)
    ours = _ours(_recipe(theirs.config), groups, theirs)
    lengths = [LENGTH, 1, 9, 17, 5]
    batch = _batch(3, lengths)
    rows = [(batch.tokens[i, :n], batch.labels[i, :n]) for i, n in enumerate(lengths)]
    packed = Batch(
        torch.cat([tokens for tokens, _ in rows])[None],
        torch.cat([labels for _, labels in rows])[None],
        batch.images,
        torch.tensor([sum(lengths)]),
        ["packed"],
        torch.tensor([0, *lengths]).cumsum(0).int(),
    )
    expected = torch.cat([theirs(input_ids=tokens[None]).logits[0] for tokens, _ in rows])
    hidden = run_model(ours, packed)
    assert (ours.llm.logits(hidden, torch.arange(sum(lengths))) - expected).abs().max() < 1e-4
    loss = F.cross_entropy(expected, packed.labels[0])
    loss.backward()
    ours.losses(hidden, packed).mean().backward()
    assert worst_gradient(_recipe(theirs.config), ours, theirs) < 1e-4


@pytest.mark.parametrize(
    ("name", "key", "change"),
    [
        ("mistral v0.1", "sliding_window", 1),
        ("qwen2, a window in some layers", "window_layers", [1, 2, 3]),
        ("qwen2.5 long", "rope_scaling", None),
        ("llama, positions divided", "rope_scaling", None),
    ],
)
def test_a_wrong_setting_is_seen(name: str, key: str, change: Any, groups: Any) -> None:
    theirs = hf_model(name)
    config = _recipe(theirs.config)
    setattr(config.model.llm, key, change)
    batch = _batch(0, [LENGTH])
    hidden = run_model(_ours(config, groups, theirs), batch)
    logits = _ours(config, groups, theirs).llm.logits(hidden, torch.arange(LENGTH))
    assert (logits - _expected(theirs, batch)[0]).abs().max() > 1e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_names_and_config_map_both_ways(name: str, groups: Any) -> None:
    """Every tensor comes back bit-identical; the written config describes the same model, to us and to transformers."""
    theirs = hf_model(name)
    config = _recipe(theirs.config)
    llm: Any = config.model.llm
    state = {
        key: value
        for key, value in on_disk(theirs.state_dict()).items()
        if not (llm.tie_embeddings and "lm_head" in key)
    }
    ours = _ours(config, groups, theirs)
    back = llm.name_map().to_hf(gather_parameters(ours.llm, ours.llm.tp_group))
    assert {key: value.shape for key, value in back.items()} == {key: value.shape for key, value in state.items()}
    assert all(torch.equal(back[key], value) for key, value in state.items())
    written = llm.to_hf()
    settings = llm.settings(whole=False)
    assert lookup("llm", written["model_type"]).from_hf(written).settings(whole=False) == settings  # type: ignore[attr-defined]
    again = CONFIG_MAPPING[written["model_type"]](**{k: v for k, v in written.items() if k != "model_type"})
    assert _recipe(again).model.llm.settings(whole=False) == settings  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("llama 2", dict(attention_bias=True), "attention_bias=True"),
        ("llama 2", dict(mlp_bias=True), "mlp_bias=True"),
        ("llama 2", dict(hidden_act="gelu"), "hidden_act='gelu'"),
        ("llama 3.1", dict(rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=2.0)), "'dynamic'"),
        ("qwen3", dict(attention_bias=True), "attention_bias=True"),
        ("qwen3", dict(layer_types=["chunked_attention"] * 4), "chunked_attention"),
        ("mistral v0.1", dict(attention_dropout=0.1), "attention_dropout=0.1"),
    ],
)
def test_what_is_not_covered_is_named(name: str, changes: dict[str, Any], words: str) -> None:
    values = {**hf_config(name).to_dict(), **changes}
    with pytest.raises(UserError, match=words):
        lookup("llm", values["model_type"]).from_hf(values)  # type: ignore[attr-defined]
