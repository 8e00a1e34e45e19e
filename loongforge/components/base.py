"""What the config of every component tells of its counterpart in Hugging Face checkpoints. No torch here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from loongforge.config.errors import UserError
from loongforge.config.schema import ComponentConfig

if TYPE_CHECKING:
    from typing_extensions import Self

    from loongforge.components.hf import NameMap

_OURS = frozenset(field.name for field in dataclasses.fields(ComponentConfig))


@dataclass(kw_only=True)
class FamilyConfig(ComponentConfig):
    """A component that may start from a Hugging Face checkpoint and be written as one."""

    hf_model_types: ClassVar[tuple[str, ...]] = ()
    """The `model_type`s of Hugging Face configs that this class covers, of the component itself."""
    hf_free: ClassVar[frozenset[str]] = frozenset()
    """Keys that a recipe may choose whatever the checkpoint's config says (lengths)."""
    hf_whole: ClassVar[frozenset[str]] = frozenset()
    """Keys of which only the config of a whole model says anything (which features are taken)."""

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> Self:
        """The component that a Hugging Face config describes.

        Args:
            hf: `config.json` of the component, or its section in that of a whole model; a projector gets the whole.

        Raises:
            UserError: a setting that is missing or not covered, with its key.
        """
        raise UserError(f"{cls.__name__} has no counterpart in Hugging Face configs")

    def to_hf(self) -> dict[str, Any]:
        """The Hugging Face config that describes this component, `model_type` included; inverse of `from_hf`."""
        raise UserError(f"type={self.type!r} has no counterpart in Hugging Face configs")

    def name_map(self) -> NameMap:
        """Hugging Face names of the parameters."""
        raise UserError(f"type={self.type!r} does not say how its parameters are named in Hugging Face checkpoints")

    def built_only(self) -> Self:
        """The same component without published parts that its outputs do not depend on, for an export of a model that
        never had them."""
        return self

    @property
    def implementation(self) -> str:
        """Types that share it compute the same where their settings are equal."""
        return self.type

    def settings(self, *, whole: bool) -> dict[str, Any]:
        """What decides the numbers that the component computes, by key, in one form for equal meanings.

        Args:
            whole: With what only the config of a whole model says.
        """
        free = _OURS | self.hf_free | (frozenset() if whole else self.hf_whole)
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in free}
