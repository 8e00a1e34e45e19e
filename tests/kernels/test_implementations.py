"""Every implementation that this machine has, against the plain formula: values and gradients."""

from __future__ import annotations

import pytest
import torch

from loongforge.kernels import adam, linear_cross_entropy, reference, registry
from loongforge.kernels.cases import CASES, Case, run
from loongforge.kernels.generic import generic
from loongforge.kernels.ops import OPS

MINE = [impl for impl in generic() if impl.name != "reference" and impl.op in CASES and impl.missing() is None]
CHECKS = [
    pytest.param(impl, case, id=f"{impl.op}-{impl.name}-{number}")
    for impl in MINE
    for number, case in enumerate(CASES[impl.op])
]


def _function(impl: registry.Impl, case: Case, dtype: torch.dtype) -> object:
    tensors = [x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in case.args]
    if impl.refuses is not None and (why := impl.refuses(*tensors, **case.kwargs)):
        pytest.skip(why)
    return impl.load()


def test_there_are_cases_for_every_op() -> None:
    assert set(OPS) - set(CASES) == {"adamw"}


@pytest.mark.parametrize(("impl", "case"), CHECKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equals_reference(impl: registry.Impl, case: Case, dtype: torch.dtype) -> None:
    tolerance = 1e-11 if dtype == torch.float64 else 2e-5
    function = _function(impl, case, dtype)
    outputs, grads = run(function, impl.op, case, dtype)  # type: ignore[arg-type]
    expected, expected_grads = run(getattr(reference, impl.op), impl.op, case, torch.float64)
    assert len(grads) == len(expected_grads)
    for mine, theirs in zip([*outputs, *grads], [*expected, *expected_grads], strict=True):
        assert mine.shape == theirs.shape
        assert torch.allclose(mine.double(), theirs.double(), atol=tolerance, rtol=tolerance)
        nothing = not theirs.numel() or not theirs.is_floating_point() or not theirs.any()
        assert nothing or not torch.allclose(mine.double() * 1.001, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("impl", "case"), CHECKS)
def test_bf16_is_near(impl: registry.Impl, case: Case) -> None:
    function = _function(impl, case, torch.bfloat16)
    outputs, grads = run(function, impl.op, case, torch.bfloat16)  # type: ignore[arg-type]
    expected, expected_grads = run(getattr(reference, impl.op), impl.op, case, torch.float64)
    for mine, theirs in zip([*outputs, *grads], [*expected, *expected_grads], strict=True):
        assert torch.allclose(mine.double(), theirs.double(), atol=0.1, rtol=0.06)


@pytest.mark.parametrize("op", [op for op in CASES if op != "linear_cross_entropy"])
def test_reference_keeps_the_dtype(op: str) -> None:
    outputs, grads = run(getattr(reference, op), op, CASES[op][0], torch.bfloat16)
    assert {x.dtype for x in [outputs[0], *grads]} == {torch.bfloat16}


@pytest.mark.parametrize("op", [op for op in CASES if op not in ("moe_permute",)])
def test_gradients_of_references_by_differences(op: str) -> None:
    """The one thing that everything else rests on: autograd's gradients against finite differences."""
    case = CASES[op][0]
    floating = [i for i, x in enumerate(case.args) if isinstance(x, torch.Tensor) and x.is_floating_point()]

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        args = list(case.args)
        for place, tensor in zip(floating, tensors, strict=True):
            args[place] = tensor
        return getattr(reference, op)(*args, **case.kwargs)

    inputs = [case.args[i].clone().requires_grad_() for i in floating]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("step_of", [adam.fused, adam.foreach, reference.adamw], ids=["fused", "foreach", "reference"])
def test_adamw_equals_torch(step_of: object, decoupled: bool) -> None:
    shapes = [(17, 5), (3,), (33, 2, 4)]
    mine = [torch.randn(s, generator=torch.Generator().manual_seed(i)).double() for i, s in enumerate(shapes)]
    theirs = [torch.nn.Parameter(x.clone()) for x in mine]
    means, squares = [torch.zeros_like(x) for x in mine], [torch.zeros_like(x) for x in mine]
    options = dict(lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    other = (torch.optim.AdamW if decoupled else torch.optim.Adam)(theirs, **options)  # type: ignore[arg-type]
    for step in range(1, 6):
        grads = [torch.sin(step * x) for x in mine]
        for param, grad in zip(theirs, grads, strict=True):
            param.grad = grad.clone()
        step_of(mine, grads, means, squares, step, decoupled=decoupled, **options)  # type: ignore[operator]
        other.step()
    assert max((a - b).abs().max().item() for a, b in zip(mine, theirs, strict=True)) < 1e-12


def test_moe_there_and_back() -> None:
    """With weights that add up to 1, rows that no expert changes return as they were."""
    rows, experts = CASES["moe_permute"][0].args[:2]
    permuted, order, counts = reference.moe_permute(rows, experts, 5)
    assert counts.tolist() == [3, 0, 4, 1, 2]
    assert torch.equal(experts.flatten()[order], experts.flatten().sort().values)
    assert torch.allclose(reference.moe_unpermute(permuted, order, torch.full((5, 2), 0.5).double()), rows)


def test_cross_entropy_in_pieces() -> None:
    """Narrow pieces, of which the last one is narrower: the same as all at once."""
    case = CASES["linear_cross_entropy"][1]
    expected = run(reference.linear_cross_entropy, "", case, torch.float64)

    def narrow(*args: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy._InPieces.apply(*args, None, 300, len(args[1]))

    for mine, theirs in zip(run(narrow, "", case, torch.float64), expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert torch.allclose(a, b, atol=1e-12)


def test_cross_entropy_of_a_frozen_output_layer() -> None:
    hidden, weight, targets = CASES["linear_cross_entropy"][0].args
    hidden = hidden.clone().requires_grad_()
    linear_cross_entropy._InPieces.apply(hidden, weight, targets, None, 10, len(weight)).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
