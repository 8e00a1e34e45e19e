"""Which component types there are: a table of the built-in ones, a decorator for yours. No torch here."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from loongforge.config.errors import UserError, did_you_mean
from loongforge.config.plugins import is_file_plugin
from loongforge.config.schema import ComponentConfig, Config
from loongforge.config.validate import build_config

KINDS = ("vision", "projector", "llm")

_BASES = {
    "vision": "loongforge.components.vision.base:VisionConfig",
    "projector": "loongforge.components.projector.base:ProjectorConfig",
    "llm": "loongforge.components.llm.base:LLMConfig",
}

_TYPES: dict[str, dict[str, str | type]] = {
    "vision": {
        "clip_vit": "loongforge.components.vision.vit.config:ClipViTConfig",
        "siglip_vit": "loongforge.components.vision.vit.config:SiglipViTConfig",
    },
    "projector": {
        "linear": "loongforge.components.projector.mlp.config:LinearConfig",
        "mlp2x_gelu": "loongforge.components.projector.mlp.config:MLP2xGELUConfig",
    },
    "llm": {
        "llama": "loongforge.components.llm.llama.config:LlamaConfig",
        "mistral": "loongforge.components.llm.llama.families:MistralConfig",
        "qwen2": "loongforge.components.llm.llama.families:Qwen2Config",
        "qwen3": "loongforge.components.llm.llama.families:Qwen3Config",
        "qwen3_moe": "loongforge.components.llm.llama.qwen3_moe:Qwen3MoeConfig",
    },
}

T = TypeVar("T", bound=type)


def register(kind: str, name: str) -> Callable[[T], T]:
    """Makes a config dataclass available as `type: name`.

    ```python
    @register("projector", "my_projector")
    @dataclass(kw_only=True)
    class MyProjectorConfig(ProjectorConfig): ...
    ```

    Args:
        kind: `vision`, `projector` or `llm`.
        name: What recipes write as `type`.

    Raises:
        UserError: unknown kind, a name that is taken, or a class that is not a config dataclass of that kind.
    """
    _known_kind(kind)

    def add(cls: T) -> T:
        _check_class(kind, name, cls)
        taken = _TYPES[kind].get(name)
        if taken is not None and _address(taken) != _address(cls):
            raise UserError(
                f"{kind} type '{name}' is registered twice: {_address(taken)} and {_address(cls)}; rename one"
            )
        _TYPES[kind][name] = cls
        return cls

    return add


def lookup(kind: str, name: str) -> type[ComponentConfig]:
    """The config dataclass of a type.

    Raises:
        UserError: no such kind or type, with the closest match.
    """
    _known_kind(kind)
    entry = _TYPES[kind].get(name)
    if entry is None:
        known = names(kind)
        hint = did_you_mean(name, known)
        raise UserError(
            f"no {kind} of that type is registered.{hint} Allowed: {', '.join(known)}; "
            "for one of your own, name its file in plugins"
        )
    return _import(entry) if isinstance(entry, str) else entry


def names(kind: str) -> list[str]:
    """Registered types of a kind."""
    _known_kind(kind)
    return sorted(_TYPES[kind])


def load_plugins(plugins: Sequence[str]) -> None:
    """Imports the files and modules that register components of the user's own; each file once.

    Raises:
        UserError: a file or module that is not there or does not import.
    """
    for plugin in plugins:
        try:
            _load_file(Path(plugin)) if is_file_plugin(plugin) else _load_module(plugin)
        except UserError as error:
            raise UserError(f"plugins: {plugin}: {error}") from error
        except Exception as error:
            raise UserError(f"plugins: {plugin} cannot be imported: {type(error).__name__}: {error}") from error


def typed_config(tree: dict[str, Any], origin: Callable[[str], str] = lambda key: "") -> Config:
    """Loads the tree's plugins and builds its config; see `build_config`."""
    plugins = tree.get("plugins")
    if isinstance(plugins, list) and all(isinstance(plugin, str) for plugin in plugins):
        load_plugins(plugins)
    return build_config(tree, lookup, origin)


def _known_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UserError(f"'{kind}' is no kind of component.{did_you_mean(kind, KINDS)} Allowed: {', '.join(KINDS)}")


def _check_class(kind: str, name: str, cls: type) -> None:
    base = _import(_BASES[kind])
    if not issubclass(cls, base):
        raise UserError(f"{kind} type '{name}': {cls.__name__} must be a subclass of {_address(base)}")
    if "__dataclass_fields__" not in cls.__dict__ or not dataclasses.is_dataclass(cls):
        raise UserError(f"{kind} type '{name}': put @dataclass(kw_only=True) between @register and {cls.__name__}")


def _address(entry: str | type) -> str:
    return entry if isinstance(entry, str) else f"{entry.__module__}:{entry.__qualname__}"


def _import(address: str) -> type:
    module, _, name = address.partition(":")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, type)
    return found


def _load_module(name: str) -> None:
    if str(Path.cwd()) not in sys.path:  # an installed console script does not look in the current folder
        sys.path.insert(0, str(Path.cwd()))
    importlib.import_module(name)


def _load_file(path: Path) -> None:
    if not path.is_file():
        nearby = [str(file) for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(f"no such file.{did_you_mean(str(path), nearby)}")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"loongforge_plugin_{path.stem}_{digest}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses resolve their annotations there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
