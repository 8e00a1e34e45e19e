"""The backend's adapters keep every rule and equal the plain formulas; wrong ones do not get through."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import pytest
import torch
from loongforge_backends.kunlun import KunlunBackend, kernels
from torch_xmlir.contract import ContractViolation

from loongforge.kernels import reference
from loongforge.kernels.cases import Case, cases, placed, run
from loongforge.kernels.impl import Impl
from loongforge.kernels.registry import choose

IMPLS = {impl.op: impl for impl in kernels.kernels()}
CHECKS = [(op, number) for op in IMPLS for number in range(len(cases(op)))]
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}


def _taken(impl: Impl, case: Case, dtype: torch.dtype) -> bool:
    arguments = placed(impl.op, case, dtype)
    assert impl.refuses is not None
    return impl.refuses(*arguments.args, **arguments.kwargs) is None


def _same(function: Any, op: str, case: Case, dtype: torch.dtype) -> bool:
    exact = run(getattr(reference, op), op, placed(op, case, dtype), torch.float64)
    found = run(function, op, case, dtype)
    tolerance = _TOLERANCE[dtype]
    pairs = zip([*found[0], *found[1]], [*exact[0], *exact[1]], strict=True)
    return all(torch.allclose(a.double(), b, atol=tolerance * float(b.abs().max()), rtol=tolerance) for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("op", "number"), CHECKS)
def test_adapters_equal_the_formula(op: str, number: int, dtype: torch.dtype) -> None:
    impl, case = IMPLS[op], cases(op)[number]
    if not _taken(impl, case, dtype):
        pytest.skip("refused by the adapter")
    assert _same(impl.load(), op, case, dtype)


def test_every_adapter_takes_something() -> None:
    for op, impl in IMPLS.items():
        assert any(_taken(impl, case, torch.bfloat16) for case in cases(op)), op


def test_strided_inputs_are_made_fit() -> None:
    x = torch.randn(4, 3, 32)[..., ::2].requires_grad_()
    for op, args in {"rms_norm": (torch.ones(16), 1e-5), "swiglu": ()}.items():
        assert torch.allclose(IMPLS[op].load()(x, *args), getattr(reference, op)(x, *args), atol=1e-5)


def test_sdpa_and_what_is_missing_are_refused() -> None:
    chosen = choose(KunlunBackend())
    assert chosen.names()["attention"] == chosen.names()["attention_varlen"] == "flash_attn"
    assert "TW" in dict(chosen.choices["attention"].rejected)["torch"]
    fallback = chosen.choices["attention"].fallback
    assert fallback is not None
    assert fallback.name == "reference"  # not SDPA either
    assert chosen.names()["adamw"] == "torch"


# Wrong adapters: (op, what stands in the source of the adapter, what a careless one would have).
MUTATIONS = {
    "rope: int32 cu_seqlens": ("rotary", "dtype=torch.int64", "dtype=torch.int32"),
    "rope: angles [T, D]": ("rotary", "reshape(length, 1, 1, width)", "reshape(length, width)"),
    "rope: rows not contiguous": ("rotary", ".reshape(length, -1, width).contiguous()", ".reshape(length, -1, width)"),
    "rope: both tensors at once": ("rotary", "rows, None, None", "rows, rows, None"),
    "rope: interleaved": ("rotary", '"THD", False', '"THD", True'),
    "rope: sin before cos": ("rotary", "(cos, sin)", "(sin, cos)"),
    "rope: angles side by side wrongly": ("rotary", "torch.cat([part, part], -1)", "part.repeat_interleave(2, -1)"),
    "rms_norm: eps and weight in another order": ("rms_norm", "eps, weight.contiguous()", "weight.contiguous(), eps"),
    "rms_norm: flags": ("rms_norm", "False, False", "True, True"),
    "rms_norm: x as it comes": ("rms_norm", "x.contiguous()", "x"),
    "rms_norm: eps forgotten": ("rms_norm", "eps, weight", "0.5, weight"),
    "swiglu: gate and up swapped": ("swiglu", "reshape(-1, width)", "reshape(-1, width).roll(width // 2, -1)"),
    "swiglu: not flattened": ("swiglu", "gate_up.reshape(-1, width).contiguous()", "gate_up.contiguous()"),
    "swiglu: as it comes": ("swiglu", ".reshape(-1, width).contiguous()", ".reshape(-1, width)"),
    "attention: int64 cu_seqlens": ("varlen", "cu_seqlens.to(torch.int32)", "cu_seqlens.to(torch.int64)"),
    "attention: q transposed": ("varlen", "x.contiguous() for x", "x.transpose(0, 1).contiguous() for x"),
    "attention: strided": ("varlen", "(x.contiguous() for x in (query, key, value))", "(query, key, value)"),
    "attention: scale of the kernel": ("varlen", "softmax_scale=scale", "softmax_scale=None"),
    "attention: causal ignored": ("varlen", "causal=causal", "causal=False"),
    "attention: longest is everything": ("varlen", "ends, ends, most, most", "ends, ends, len(q), len(q)"),
    "dense: rows not divided": ("dense", "(rows + 1) * length, length", "(rows + 1) * length, rows * length"),
}


def _strided(case: Case) -> Case:
    """The same numbers with gaps between them, and heads before rows."""

    def spread(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.dim() < 2:
            return x
        return torch.stack([x, x], -1)[..., 0]

    return Case(tuple(spread(x) for x in case.args), case.kwargs)


def _killed(function: Any, op: str) -> bool:
    """Some case shows the fault, as a refused call, an error or a wrong result."""
    for case in cases(op):
        for dtype in (torch.float32, torch.bfloat16):
            if _taken(IMPLS[op], case, dtype):
                try:
                    arguments = _strided(placed(op, case, dtype))
                    function(*arguments.args, **arguments.kwargs)
                    if not _same(function, op, case, dtype):
                        return True
                except (ContractViolation, RuntimeError, TypeError, ValueError, AttributeError):
                    return True
    return False


@pytest.mark.parametrize("name", MUTATIONS)
def test_wrong_adapters_are_caught(name: str) -> None:
    adapter, right, wrong = MUTATIONS[name]
    source = textwrap.dedent(inspect.getsource(getattr(kernels, adapter)))
    assert source.count(right) == 1, "the adapter has changed; so must this mutation"
    scope = dict(vars(kernels))
    exec(source.replace(right, wrong), scope)
    op = {"varlen": "attention_varlen", "dense": "attention"}.get(adapter, adapter)
    assert _killed(scope[adapter](), op)


@pytest.mark.parametrize("op", IMPLS)
def test_right_adapters_are_not(op: str) -> None:
    assert not _killed(IMPLS[op].load(), op)
