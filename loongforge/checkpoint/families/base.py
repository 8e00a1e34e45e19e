"""What a family of whole models has to say: which part of its `config.json` describes which component, how the
components' tensors are named inside it, and what an exported folder holds besides weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from loongforge.checkpoint.families.processor_files import image_settings
from loongforge.components.base import FamilyConfig
from loongforge.components.hf import NameMap
from loongforge.components.registry import lookup, names
from loongforge.components.vision.base import VisionConfig
from loongforge.config.errors import UserError
from loongforge.config.schema import ComponentConfig, ModelConfig

Prefixes = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class ExportFacts:
    """What of a model is not in its components, for the files of an export."""

    tokenizer: Any
    """The run's tokenizer; None where there is none."""
    image_token: str
    """`data.image_token`."""
    num_image_tokens: int
    """Tokens of one image."""
    max_tiles: int = 1
    """`data.max_tiles`."""
    thumbnail: bool = True
    """`data.thumbnail`."""

    @property
    def image_token_id(self) -> int | None:
        """The id of the image token."""
        return None if self.tokenizer is None else self.tokenizer.convert_tokens_to_ids(self.image_token)


class Family:
    """A family of whole models in transformers. Subclasses are a table and a few lines each."""

    name: ClassVar[str]
    """How messages and the documentation call it."""
    model_types: ClassVar[tuple[str, ...]]
    """Of `config.json`."""
    prefixes: ClassVar[Mapping[str, Prefixes]] = {}
    """By component: what stands before bare names (see `NameMap.within`), the spelling that exports write first.
    A component that is not named here has the names of its own checkpoints."""

    def sections(self, hf: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """The part of `config.json` that each component's `from_hf` reads."""
        raise NotImplementedError

    def components(self, hf: Mapping[str, Any], folder: Path) -> dict[str, ComponentConfig]:
        """Configs of the components, by name.

        Args:
            hf: `config.json`.
            folder: Where it lies, with the settings of the image processor.

        Raises:
            UserError: a setting that is not covered, with its key.
        """
        found = {name: component_from_hf(name, part) for name, part in self.sections(hf).items()}
        vision = found.get("vision")
        if isinstance(vision, VisionConfig):
            for key, value in image_settings(folder).items():
                setattr(vision, key, value)
        return found

    def data_keys(self, hf: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """What a recipe's `data` has to say for a checkpoint (its image token, tiles)."""
        return {}

    def obstacle(self, model: ModelConfig) -> str | None:
        """Why a recipe's model is not of this family; None: it is."""
        raise NotImplementedError

    def to_hf(self, model: ModelConfig, facts: ExportFacts) -> dict[str, Any]:
        """`config.json` of a recipe's model, with `architectures`.

        Raises:
            UserError: a component that transformers does not have.
        """
        raise NotImplementedError

    def files(self, model: ModelConfig, facts: ExportFacts) -> dict[str, Any]:
        """More JSON files of an export by name: processor and image processor."""
        return {}

    def adjusted(self, file: str, theirs: dict[str, Any], model: ModelConfig, facts: ExportFacts) -> dict[str, Any]:
        """A JSON file that came with a checkpoint, where the recipe has changed what it says.

        Args:
            file: Its name.
            theirs: Its content; the same object is given back where nothing has changed.
            model: The recipe's.
            facts: What the components do not say.
        """
        return theirs

    def owner(self, tensor: str) -> str | None:
        """The component that a tensor of such a checkpoint belongs to, by its name."""
        known = [
            (len(prefix + start), name)
            for name, table in self.prefixes.items()
            for start, prefixes in table.items()
            for prefix in prefixes
            if tensor.startswith(prefix + start)
        ]
        return max(known)[1] if known else None

    def required(self, name: str, component: FamilyConfig, hf: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
        """Shapes, by bare name, of what a component's checkpoint holds as its config says, and is not built here."""
        return {}

    def name_map(self, name: str, component: FamilyConfig) -> NameMap:
        """Names of a component's tensors inside the whole."""
        own = component.name_map()
        return own.within(self.prefixes[name]) if name in self.prefixes else own


def component_from_hf(kind: str, hf: Mapping[str, Any]) -> ComponentConfig:
    """The component of a kind that a config (or a section of one) describes.

    Args:
        kind: `vision`, `projector` or `llm`.
        hf: With its `model_type`.

    Raises:
        UserError: no type covers it.
    """
    model_type = hf.get("model_type")
    covered: list[str] = []
    for name in names(kind):
        cls = lookup(kind, name)
        types = cls.hf_model_types if issubclass(cls, FamilyConfig) else ()
        if model_type in types:
            assert issubclass(cls, FamilyConfig)
            return cls.from_hf(hf)
        covered += types
    raise UserError(f"config.json: no {kind} type covers model_type={model_type!r}; covered: {', '.join(covered)}")


def has_output_layer(folder: Path) -> bool:
    """Whether a checkpoint holds an output layer beside its embedding."""
    from loongforge.checkpoint.hf_folder import HFFolder

    return any(name.endswith("lm_head.weight") for name in HFFolder(folder).tensors)
