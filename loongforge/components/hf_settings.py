"""Reading a Hugging Face config: what is not covered here is an error that names the key. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loongforge.config.errors import UserError

_REQUIRED = object()

ACTIVATION_NAMES = {
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "gelu": "gelu",
}
"""transformers' names of activations -> ours."""


class HFSettings:
    """The settings of one `config.json`, or of a section of it.

    Args:
        values: As parsed.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.model_type = str(values.get("model_type"))

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        """A setting; null counts as not given.

        Raises:
            UserError: it is not there and has no default.
        """
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise UserError(f"config.json of model_type={self.model_type} has no '{key}'")
        return default

    def require(self, key: str, *allowed: Any) -> None:
        """Refuses a setting that this component does not compute; not given counts as the first allowed value.

        Raises:
            UserError: naming key, value and what is covered.
        """
        value = self.get(key, allowed[0])
        if value not in allowed:
            covered = " or ".join(map(repr, allowed))
            raise UserError(
                f"config.json: {key}={value!r} is not covered for model_type={self.model_type}; covered: {covered}"
            )

    def activation(self, key: str = "hidden_act") -> str:
        """Our name of an activation.

        Raises:
            UserError: one that is not there.
        """
        value = self.get(key)
        self.require(key, *ACTIVATION_NAMES)
        return ACTIVATION_NAMES[value]


def hf_activation(name: str) -> str:
    """transformers' name of one of our activations."""
    return next(theirs for theirs, ours in ACTIVATION_NAMES.items() if ours == name)
