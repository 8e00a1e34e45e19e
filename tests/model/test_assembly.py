"""Building a model from a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from loongforge.components.projector.base import ProjectorConfig
from loongforge.config.errors import UserError
from tests.support.tiny import IMAGE_TOKEN, tiny_config


@dataclass(kw_only=True)
class _Plain(ProjectorConfig):
    """As somebody who knows little of megatron-core would write it: modules in modules, no process group."""

    def num_params(self, *, input_size: int, output_size: int) -> int:
        return input_size * output_size

    def build(self, context: Any, *, input_size: int, output_size: int) -> Any:
        from megatron.core.transformer.module import MegatronModule

        from loongforge.components.transformer.layers import transformer_config

        config = transformer_config(context, num_layers=1, hidden_size=output_size, num_attention_heads=1)
        outer, inner = MegatronModule(config), MegatronModule(config)
        inner.weight = torch.nn.Linear(input_size, output_size, bias=False)
        outer.inner = inner
        return outer


def test_a_component_without_process_groups_can_be_saved(groups: Any) -> None:
    from loongforge.model.assembly import build_model
    from loongforge.model.weights import model_state

    config = tiny_config()
    config.model.projector = _Plain(type="plain")
    state = model_state(build_model(config, groups, image_token=IMAGE_TOKEN), groups)
    assert list(state["projector"]) == ["inner.weight.weight"]


def test_what_a_device_cannot_compute_in_is_refused(groups: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from loongforge.kernels.backend import Support, current
    from loongforge.model.assembly import build_model

    monkeypatch.setattr(type(current()), "capability", lambda self, name: Support("no", "documented: here"))
    with pytest.raises(UserError, match=r"trainer.precision='bf16': backend cpu has no bf16 \(documented: here\)"):
        build_model(tiny_config(precision="bf16"), groups, image_token=IMAGE_TOKEN)
    build_model(tiny_config(), groups, image_token=IMAGE_TOKEN)
