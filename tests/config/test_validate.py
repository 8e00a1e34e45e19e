"""The strict pass: every mistake at once, with its origin and the closest match."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from loongforge.components.registry import typed_config
from loongforge.config.compose import compose
from loongforge.config.errors import UserError
from loongforge.config.recipes import recipe_files
from loongforge.config.saved import load_config, save_config, to_tree
from loongforge.config.schema import Config, LoraConfig


def _build(*overrides: str) -> Config:
    composed = compose(["recipe=llava_sft", *overrides])
    return typed_config(composed.tree, composed.origin)


def _errors(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        _build(*overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_every_built_in_recipe_is_valid(name: str) -> None:
    composed = compose([f"recipe={name}", "data.train=x", "data.tokenizer=y"])
    assert typed_config(composed.tree).name == name


def test_types_and_defaults() -> None:
    config = _build("optimizer.lr=1", "data.train=[{path: a.jsonl, weight: 2}, {path: b.jsonl}]")
    assert isinstance(config.optimizer.lr, float)
    assert isinstance(config.data.train, list)
    assert [source.weight for source in config.data.train] == [2.0, 1.0]
    assert config.logging.every == 10
    assert config.model.llm.parallel.pp == 1


@pytest.mark.parametrize("text", ["1e-3", "'1e-3'"])
def test_exponents_without_a_dot_are_numbers(text: str) -> None:
    assert _build(f"optimizer.lr={text}").optimizer.lr == 1e-3


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_unknown_keys_whatever_their_prefix(prefix: str) -> None:
    message = _errors(f"{prefix}trainer.stps=3")
    assert f"trainer.stps=3 (override '{prefix}trainer.stps=3'): unknown key. Did you mean 'trainer.steps'?" in message
    assert "The recipe has 1 error:" in message


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("trianer.steps=3", "'trainer'"),
        ("lr=3", "'optimizer.lr'"),
        ("trainer.lr=3", "'optimizer.lr'"),
        ("model.llm.num_layer=3", "'model.llm.num_layers'"),
        ("model.llm.parallel.tpp=3", "'model.llm.parallel.tp'"),
        ("model.vison.freeze=true", "'model.vision'"),
        ("visionn=clip_vit_tiny", "'vision'"),
    ],
)
def test_closest_match(override: str, hint: str) -> None:
    assert f"Did you mean {hint}?" in _errors(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.steps=abc", "trainer.steps='abc' (override 'trainer.steps=abc'): expected a whole number"),
        ("trainer.steps=1.5", "trainer.steps=1.5 (override 'trainer.steps=1.5'): expected a whole number"),
        ("trainer.steps=true", "trainer.steps=true (override 'trainer.steps=true'): expected a whole number"),
        ("trainer.steps=null", "trainer.steps=null (override 'trainer.steps=null'): expected a whole number"),
        ("trainer.steps=???", "trainer.steps is missing (override 'trainer.steps=???'): give a whole number"),
        ("~trainer.steps", "trainer.steps is missing (override '~trainer.steps'): give a whole number"),
        ("trainer.steps={a: 1}", "expected a whole number"),
        ("trainer=3", "trainer=3 (override 'trainer=3'): expected a section with keys steps"),
        ("optimizer.lr=fast", "expected a number"),
        ("optimizer.lr=true", "expected a number"),
        ("optimizer.lr=nan", "must be a finite number"),
        ("optimizer.distributed=1", "expected true or false"),
        ("trainer.precision=bf61", "expected one of fp32, bf16. Did you mean 'bf16'?"),
        ("optimizer.betas=0.9", "expected a list, each item a number"),
        ("optimizer.betas=[0.9, x]", "optimizer.betas.1='x' (override 'optimizer.betas=[0.9, x]'): expected a number"),
        ("optimizer.betas=[0.9, 1]", "must be two numbers"),
        ("optimizer.betas=[0.9]", "must be two numbers"),
        ("data.train=[{path: a, wieght: 2}]", "data.train.0.wieght=2"),
        ("data.train=[{weight: 2}]", "data.train.0.path is missing"),
        ("data.train=5", "expected text or a list, each item a section with keys path, weight"),
        ("model.llm.parallel.ranks=[0,0]", "different ranks"),
        ("model.llm.type=lama", "Did you mean 'llama'?"),
        ("~model.llm.type", "model.llm.type is missing"),
        ("model.llm=null", "model.llm=null (override 'model.llm=null'): expected a section"),
        ("model.vision.image_mean=[1,b,3]", "model.vision.image_mean.1='b'"),
        ("model.llm.rope_scaling={rope_type: llama3, low_freq_factor: 1, high_freq_factor: 4}",
         "model.llm.rope_scaling.factor is missing (override"),
        ("optimizer.lr=${optimizer.rate}", "(override 'optimizer.lr=${optimizer.rate}'): "
         "Interpolation key 'optimizer.rate' not found"),
        ("trainer.steps=0", "must be at least 1"),
        ("trainer.steps=-5", "must be at least 1"),
        ("optimizer.lr=0", "must be greater than 0"),
        ("model.vision.lr_scale=-1", "must be at least 0"),
        ("optimizer.min_lr_ratio=2", "must be between 0 and 1"),
        ("launcher.nproc=0", "must be at least 1"),
        ("model.llm.parallel.tp=0", "model.llm.parallel.tp=0 (override 'model.llm.parallel.tp=0'): must be at least 1"),
        ("checkpoint.keep=0", "must be at least 1"),
        ("name=a/b", "without '/'"),
        ("version=99", "newer than 1"),
    ],
)  # fmt: skip
def test_single_mistakes(override: str, message: str) -> None:
    text = _errors(override)
    assert message in text
    assert "1 error:" in text or "newer" in text  # and no other complaint follows from it


def test_all_mistakes_at_once_with_their_origin(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("defaults: [{/recipe: llava_sft}]\ntrainer:\n  steps: many\n  micro_batch_size: 5\n  foo: 1\n")
    composed = compose([f"recipe={file}", "+optimizer.lrr=1", "trainer.precision=fp8", "optimizer.betas=[2,2]"])
    with pytest.raises(UserError) as caught:
        typed_config(composed.tree, composed.origin)
    text = str(caught.value)
    assert text.startswith("The recipe has 5 errors:")
    for line in (
        f"trainer.steps='many' ({file}:3)",
        f"trainer.foo=1 ({file}:5)",
        "optimizer.lrr=1 (override '+optimizer.lrr=1')",
        "trainer.precision='fp8' (override",
        "optimizer.betas=[2, 2] (override",
    ):
        assert line in text


def test_saved_configs_read_back(tmp_path: Path) -> None:
    config = _build("trainer.steps=200", "model.llm.parallel.tp=2")
    save_config(config, tmp_path / "config.yaml")
    again = typed_config(load_config(tmp_path / "config.yaml"))
    assert again == config
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    as_recipe = compose([f"recipe={tmp_path}/config.yaml"])
    assert typed_config(as_recipe.tree) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 99\n", "version=99, newer than 1"),
        ("a: 1\n", "version=None"),
        ("[1", "cannot read"),
        ("- 1", "no keys"),
    ],
)
def test_saved_configs_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="cannot read"):
        load_config(tmp_path / "gone.yaml")


def test_the_schema_covers_its_ranges() -> None:
    """A renamed field must not silently lose its range check."""
    from loongforge.config.checks import _RANGES
    from loongforge.config.schema import ClusterConfig

    tree: Any = to_tree(_build())
    tree["cluster"] = {field.name: None for field in fields(ClusterConfig)}  # null unless it is given
    for key in _RANGES:
        node = tree
        for part in key.split("."):
            assert part in node, f"_RANGES has {key}, the schema has not"
            node = node[part]


def test_a_section_that_may_be_null() -> None:
    assert _build("model.llm.lora={rank: 4, targets: [q, k]}").model.llm.lora == LoraConfig(rank=4, targets=["q", "k"])
    with pytest.raises(UserError, match=r"model.llm.lora.rnk.*rank"):
        _build("model.llm.lora={rnk: 4}")
