"""Attention, norms and activations of encoders and projectors are the registry's: the reference gives the same,
without torch's own."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from loongforge.kernels.registry import choose, rebound
from tests.components.combinations import choices, compose_one
from tests.components.conftest import BACKEND

PAIRS = [
    *((vision, "mlp2x_gelu") for vision in ("qwen2_vit", "qwen2_5_vit")),
    *(("clip_vit", projector) for projector in ("perceiver", "resampler", "vit", "pixel_shuffle_mlp", "patch_merger")),
]


def _refused(*_: Any, **__: Any) -> None:
    raise AssertionError("torch's own was called beside the registry")


@pytest.mark.parametrize(("vision", "projector"), PAIRS)
def test_ops_go_through_the_registry(vision: str, projector: str, groups: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from loongforge.training.verify.trial import Trial

    config = compose_one(vision, projector, next(iter(choices("llm"))))
    found = Trial(config, groups).run(range(2))
    config.kernels.all = "reference"
    for name in ("scaled_dot_product_attention", "layer_norm", "rms_norm", "gelu"):
        monkeypatch.setattr(torch.nn.functional, name, _refused)
    with rebound(choose(BACKEND, asdict(config.kernels))):
        expected = Trial(config, groups).run(range(2))
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    for name, gradient in expected.gradients.items():
        scale = max(1e-3, float(abs(gradient).max()))
        assert np.allclose(found.gradients[name], gradient, atol=1e-4 * scale), name
