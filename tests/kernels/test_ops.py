"""Every operation against its formula: values, gradients, strided and half-precision inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from loongforge.kernels import ops

Formula = Callable[..., torch.Tensor]


def _rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def _swiglu(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def _rotary(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


def _inputs(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


ANGLES = torch.randn(5, 1, 1, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
CASES: dict[str, tuple[Formula, Formula, tuple[tuple[int, ...], ...]]] = {
    "rms_norm": (lambda x, w: ops.rms_norm(x, w, 1e-5), _rms_norm, ((5, 3, 16), (16,))),
    "swiglu": (ops.swiglu, _swiglu, ((5, 3, 16),)),
    "quick_gelu": (ops.quick_gelu, lambda x: x * torch.sigmoid(1.702 * x), ((5, 3, 16),)),
    "rotary": (
        lambda x: ops.rotary(x, ANGLES.cos().to(x.dtype), ANGLES.sin().to(x.dtype)),
        lambda x: _rotary(x, ANGLES.to(x.dtype)),
        ((5, 3, 2, 2, 8),),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str) -> None:
    op, formula, shapes = CASES[name]
    mine, theirs = _inputs(*shapes), _inputs(*shapes)
    output, expected = op(*mine), formula(*theirs)
    assert torch.allclose(output, expected, atol=1e-12)
    upstream = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(2))
    output.backward(upstream)
    expected.backward(upstream)
    for a, b in zip(mine, theirs, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad, b.grad, atol=1e-12)
        assert not torch.allclose(a.grad * 1.0001, b.grad, atol=1e-12), "the tolerance lets a fault through"


@pytest.mark.parametrize("size", [1.0, 1e-3])
@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_without_gradients_values_are_the_same(name: str, size: float) -> None:
    """Also where the epsilon of a norm counts, and of strided inputs."""
    op, formula, shapes = CASES[name]
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 2e-6)):
        (x, *rest) = _inputs((*shapes[0][:-1], 2 * shapes[0][-1]), *shapes[1:], dtype=dtype)
        x = x[..., ::2] * size
        found, expected = op(x, *rest), formula(x, *rest)
        assert found.dtype == dtype
        off = [float((values - expected).abs().max() / expected.abs().max()) for values in (found, found * 1.0001)]
        assert off[0] < tolerance < off[1]


@pytest.mark.parametrize("name", CASES)
def test_strided_inputs(name: str) -> None:
    op, formula, shapes = CASES[name]
    (x, *rest) = _inputs((*shapes[0][:-1], 2 * shapes[0][-1]), *shapes[1:])
    strided = x[..., ::2]
    assert torch.allclose(op(strided, *rest), formula(strided, *rest), atol=1e-12)
    op(strided, *rest).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("name", CASES)
def test_bf16_is_near_fp32(name: str) -> None:
    op, formula, shapes = CASES[name]
    inputs = _inputs(*shapes, dtype=torch.bfloat16)
    output = op(*inputs)
    assert output.dtype == torch.bfloat16
    expected = formula(*(x.detach().double() for x in inputs))
    assert torch.allclose(output.double(), expected, atol=0.05, rtol=0.05)
    output.sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.bfloat16 for x in inputs)
