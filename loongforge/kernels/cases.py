"""Inputs of every op, small and awkward, for comparisons of implementations: by tests, and by `backends verify`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """Arguments of an op: floating tensors are differentiated."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """The same numbers in every dtype."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def _attention(rows: int, heads: int, kv_heads: int, width: int, *, causal: bool) -> Case:
    shape = (7, rows)
    tensors = (
        randn(*shape, heads, width),
        randn(*shape, kv_heads, width, seed=1),
        randn(*shape, kv_heads, width, seed=2),
    )
    return Case(tensors, {"causal": causal, "scale": width**-0.5})


def _documents(lengths: list[int], heads: int, kv_heads: int, *, causal: bool) -> Case:
    total = sum(lengths)
    ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    tensors = (randn(total, heads, 8), randn(total, kv_heads, 8, seed=1), randn(total, kv_heads, 8, seed=2))
    return Case((*tensors, ends), {"lengths": lengths, "causal": causal, "scale": 0.3})


def _experts() -> torch.Tensor:
    return torch.tensor([[0, 2], [2, 0], [4, 2], [2, 3], [0, 4]])  # none goes to expert 1


def _masked() -> Case:
    plain = _attention(2, 4, 2, 8, causal=False)
    mask = randn(2, 1, 7, 7, seed=5) > -0.5
    mask[..., 0] = True  # every row sees something
    return Case(plain.args, {**plain.kwargs, "mask": mask})


def _cross_entropy(tokens: int, hidden: int, vocabulary: int, padding: int = 0) -> Case:
    targets = torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(3))
    args = (randn(tokens, hidden), randn(vocabulary + padding, hidden, seed=1), targets)
    return Case(args, {"vocab_size": vocabulary} if padding else {})


def _one_query() -> Case:
    """A row that is continued by one token: heads that share keys, and a mask of its own for each row."""
    args = (randn(1, 2, 4, 8), randn(7, 2, 2, 8, seed=1), randn(7, 2, 2, 8, seed=2))
    mask = torch.arange(7) <= torch.tensor([4, 6])[:, None, None, None]
    return Case(args, {"causal": False, "scale": 0.4, "mask": mask})


ANGLES = randn(5, 1, 1, 1, 4, seed=9)
CASES: dict[str, list[Case]] = {
    "attention": [_attention(2, 4, 2, 8, causal=True), _attention(1, 3, 3, 5, causal=False), _masked(), _one_query()],
    "attention_varlen": [
        _documents([3, 1, 6], 4, 2, causal=True),
        _documents([4, 0, 2], 2, 2, causal=False),
        _documents([5], 1, 1, causal=True),
    ],
    "rms_norm": [Case((randn(5, 3, 16), randn(16), 1e-5)), Case((randn(1, 7), randn(7), 1e-6))],
    "layer_norm": [Case((randn(5, 3, 16), randn(16), randn(16, seed=1), 1e-5))],
    "rotary": [Case((randn(5, 3, 2, 2, 8), ANGLES.cos(), ANGLES.sin()))],
    "swiglu": [Case((randn(5, 3, 16),)), Case((randn(0, 4),))],
    "gelu": [Case((randn(5, 3, 16),))],
    "gelu_tanh": [Case((randn(5, 3, 16),))],
    "quick_gelu": [Case((randn(5, 3, 16),))],
    "linear_cross_entropy": [
        _cross_entropy(6, 8, 37),
        _cross_entropy(1, 3, 1100),
        _cross_entropy(0, 4, 9),
        _cross_entropy(5, 4, 30, padding=3),
    ],
    "moe_permute": [Case((randn(5, 4), _experts(), 5))],
    "moe_unpermute": [Case((randn(10, 4), _experts().flatten().argsort(stable=True), randn(5, 2, seed=1)))],
    "grouped_gemm": [
        Case((randn(10, 4), randn(5, 4, 8, seed=1), torch.tensor([3, 0, 4, 1, 2]))),
        Case((randn(3, 5), randn(2, 5, 3, seed=1), torch.tensor([0, 3]))),
    ],
}
_LARGER: dict[str, list[Case]] = {
    "attention": [_attention(2, 4, 2, width, causal=True) for width in (64, 80, 128)],
    "attention_varlen": [_documents([65, 1, 30, 160], 4, 1, causal=causal) for causal in (True, False)],
    "rms_norm": [Case((randn(65, 3, 256), randn(256), 1e-5))],
    "layer_norm": [Case((randn(65, 3, 256), randn(256), randn(256, seed=1), 1e-5))],
    "swiglu": [Case((randn(65, 2, 512),))],
    "linear_cross_entropy": [_cross_entropy(70, 64, 2000), _cross_entropy(70, 64, 1500, padding=548)],
    "grouped_gemm": [Case((randn(64, 32), randn(4, 32, 64, seed=1), torch.tensor([40, 0, 1, 23])))],
}


def cases(op: str) -> list[Case]:
    """Small and awkward ones, and some of the sizes that special kernels are made for."""
    return CASES[op] + _LARGER.get(op, [])


CONSTANT = {"rotary": (1, 2)}
"""Arguments that take no gradient: angles are positions."""


def placed(op: str, case: Case, dtype: torch.dtype, device: torch.device | None = None) -> Case:
    """The case in a dtype and on a device, its floating arguments as leaves that take a gradient."""

    def move(value: Any, *, grad: bool) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if not value.is_floating_point():
            return value.to(device)
        return value.detach().to(device, dtype, copy=True).requires_grad_(grad)

    args = tuple(move(x, grad=place not in CONSTANT.get(op, ())) for place, x in enumerate(case.args))
    return Case(args, {name: move(x, grad=False) for name, x in case.kwargs.items()})


def run(
    function: Callable[..., Any], op: str, case: Case, dtype: torch.dtype, device: torch.device | None = None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs, and gradients of the floating arguments for a fixed upstream gradient, on the host.

    Args:
        function: With the arguments of the op.
        op: Its name.
        case: What to call it with.
        dtype: Of all floating arguments.
        device: Where; None: the host.
    """
    case = placed(op, case, dtype, device)
    args, outputs = case.args, function(*case.args, **case.kwargs)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    upstream = torch.cos(torch.arange(outputs[0].numel(), dtype=torch.float64)).view(outputs[0].shape)
    outputs[0].backward(upstream.to(outputs[0].device, outputs[0].dtype))
    wanted = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.requires_grad]
    return [x.detach().cpu() for x in outputs], [x.grad.cpu() for x in wanted if x.grad is not None]
