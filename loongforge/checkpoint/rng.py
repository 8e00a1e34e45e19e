"""Random states of a process, as plain values for JSON."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

from loongforge.kernels.backend import current


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _state(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def capture() -> dict[str, Any]:
    """States of python, numpy, torch, the device and megatron-core's tracker."""
    version, keys, gauss = random.getstate()
    numpy_state: Any = np.random.get_state()
    name, table, position, has_gauss, cached = numpy_state
    return {
        "python": [version, list(keys), gauss],
        "numpy": [name, table.tolist(), position, has_gauss, cached],
        "torch": _text(torch.get_rng_state()),
        "device": _text(current().rng_state()),
        "tracker": {name: _text(state) for name, state in get_cuda_rng_tracker().get_states().items()},
    }


def restore(states: dict[str, Any]) -> None:
    """Puts back what `capture` returned."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(_state(states["torch"]))
    if "device" in states:  # older checkpoints have none
        current().set_rng_state(_state(states["device"]))
    get_cuda_rng_tracker().set_states({name: _state(text) for name, text in states["tracker"].items()})
