"""Components of the user's own, and the configs of ours against the published sizes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from loongforge.components import registry
from loongforge.components.llm.base import LLMConfig
from loongforge.components.projector.base import ProjectorConfig
from loongforge.components.registry import load_plugins, lookup, names, register, typed_config
from loongforge.components.vision.base import VisionConfig
from loongforge.config.compose import compose
from loongforge.config.errors import UserError

_PLUGIN = """\
from __future__ import annotations
from dataclasses import dataclass
from typing import Literal
from loongforge.components.projector.base import ProjectorConfig
from loongforge.components.registry import register

@register("projector", "mine")
@dataclass(kw_only=True)
class MineConfig(ProjectorConfig):
    depth: int
    mode: Literal["a", "b"] = "a"
"""


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_TYPES", {kind: dict(types) for kind, types in registry._TYPES.items()})
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("loongforge_plugin"):
            del sys.modules[name]


def _recipe(folder: Path, plugin: str = _PLUGIN) -> str:
    (folder / "mine.py").write_text(plugin)
    recipe = "defaults: [{/recipe: llava_sft}]\nplugins: [mine.py]\nmodel: {projector: {type: mine, depth: 3}}\n"
    (folder / "mine.yaml").write_text(recipe)
    return f"recipe={folder}/mine.yaml"


def test_a_plugin_beside_the_recipe_is_used(tmp_path: Path) -> None:
    tree = compose([_recipe(tmp_path), "~projector"]).tree
    config = typed_config(tree)
    assert type(config.model.projector).__name__ == "MineConfig"
    assert config.model.projector.depth == 3  # type: ignore[union-attr]
    assert "mine" in names("projector")
    assert typed_config(tree) == config  # loaded once


def test_a_plugins_fields_are_strict(tmp_path: Path) -> None:
    composed = compose([_recipe(tmp_path), "~projector", "model.projector.mode=c", "model.projector.dpth=1"])
    with pytest.raises(UserError, match=r"(?s)2 errors.*Did you mean 'model.projector.depth'.*one of a, b"):
        typed_config(composed.tree, composed.origin)


def test_a_plugin_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "loongforge_plugin_module.py").write_text(_PLUGIN)
    load_plugins(["loongforge_plugin_module"])
    assert "mine" in names("projector")


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ("import nowhere_at_all", "mine.py cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def (", "mine.py cannot be imported: SyntaxError"),
        (_PLUGIN.replace('"mine"', '"linear"'), "'linear' is registered twice: loongforge.components"),
        (_PLUGIN.replace('"projector"', '"projecter"'), "Did you mean 'projector'"),
        (_PLUGIN.replace('"projector"', '"vision"'), "must be a subclass of .*VisionConfig"),
        (_PLUGIN.replace("@dataclass(kw_only=True)\n", ""), r"put @dataclass\(kw_only=True\) between"),
    ],
)
def test_broken_plugins(tmp_path: Path, plugin: str, message: str) -> None:
    tree = compose([_recipe(tmp_path, plugin)]).tree
    with pytest.raises(UserError, match=message):
        typed_config(tree)


def test_missing_plugins(tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    with pytest.raises(UserError, match=r"Did you mean .*mine\.py"):
        load_plugins([str(tmp_path / "mien.py")])
    with pytest.raises(UserError, match="no_such_module cannot be imported"):
        load_plugins(["no_such_module"])


def test_unknown_types_and_kinds() -> None:
    with pytest.raises(UserError, match="Did you mean 'siglip_vit'"):
        lookup("vision", "siglip_vitt")
    with pytest.raises(UserError, match="Did you mean 'llm'"):
        lookup("lllm", "llama")


def test_registering_the_same_class_again_is_fine() -> None:
    @dataclass(kw_only=True)
    class OwnConfig(ProjectorConfig):
        pass

    assert register("projector", "own")(OwnConfig) is register("projector", "own")(OwnConfig)


def test_every_built_in_address_exists() -> None:
    for kind in registry.KINDS:
        for name in names(kind):
            assert lookup(kind, name).__name__.endswith("Config")


@pytest.mark.parametrize(
    ("llm", "billions"),
    [
        ("llama2_7b", 6.738415616),
        ("llama3_8b", 8.030261248),
        ("llama3_1_8b", 8.030261248),
        ("llama3_1_70b", 70.553706496),
        ("llama3_2_1b", 1.235814400),
        ("llama3_2_3b", 3.212749824),
        ("qwen2_5_0_5b", 0.494032768),
        ("qwen2_5_1_5b", 1.543714304),
        ("qwen2_5_3b", 3.085938688),
        ("qwen2_5_7b", 7.615616512),
        ("qwen2_5_14b", 14.770033664),
        ("qwen2_5_32b", 32.763876352),
        ("qwen2_5_72b", 72.706203648),
        ("qwen3_0_6b", 0.596049920),
        ("qwen3_1_7b", 1.720574976),
        ("qwen3_4b", 4.022468096),
        ("qwen3_8b", 8.190735360),
        ("qwen3_14b", 14.768307200),
        ("qwen3_32b", 32.762123264),
        ("qwen3_30b_a3b", 30.532122624),
        ("qwen3_235b_a22b", 235.093634560),
        ("mistral_7b_v0_1", 7.241732096),
        ("mistral_7b_v0_3", 7.248023552),
    ],
)
def test_language_models_have_the_published_number_of_parameters(llm: str, billions: float) -> None:
    config = typed_config(compose(["recipe=llava_sft", f"llm={llm}"]).tree).model.llm
    assert isinstance(config, LLMConfig)
    assert config.num_params() == round(billions * 1e9)


@pytest.mark.parametrize(
    ("vision", "tokens", "width"),
    [
        ("clip_vit_l14_336", 576, 1024),
        ("clip_vit_l14_224", 256, 1024),
        ("siglip_so400m_14_384", 729, 1152),
        ("clip_vit_tiny", 4, 128),
        ("siglip_vit_tiny", 4, 128),
    ],
)
def test_encoders_have_the_published_sizes(vision: str, tokens: int, width: int) -> None:
    config = typed_config(compose(["recipe=llava_sft", f"vision={vision}"]).tree).model.vision
    assert isinstance(config, VisionConfig)
    assert (config.num_image_tokens, config.output_size) == (tokens, width)
    assert config.problems(tp=1) == []
