"""How implementations are chosen: by rank, by name, loudly, once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from loongforge.config.errors import UserError
from loongforge.config.kernels import KernelsConfig
from loongforge.kernels import ops, registry
from loongforge.kernels.impl import Impl
from loongforge.kernels.registry import bind, choose, rebound


@dataclass
class Provider:
    impls: Sequence[Impl] = ()
    refused: Mapping[tuple[str, str], str] | None = None
    name: str = "toy"

    def kernels(self) -> Sequence[Impl]:
        return self.impls

    def refused_kernels(self) -> Mapping[tuple[str, str], str]:
        return self.refused or {}


def _impl(name: str = "fast", op: str = "swiglu", priority: int = 50, **more: Any) -> Impl:
    return Impl(op=op, name=name, load=lambda: lambda x: x * 7, priority=priority, source="a paper", **more)


@pytest.fixture(autouse=True)
def _as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_selection", None)
    before = dict(ops.bound)
    monkeypatch.setattr(ops, "bound", type(ops.bound)(before))


def test_the_schema_names_every_op() -> None:
    assert {field.name for field in fields(KernelsConfig)} == {*ops.OPS, registry.ALL}


def test_the_highest_priority_is_taken_and_the_others_are_named() -> None:
    choice = choose(Provider([_impl()])).choices["swiglu"]
    assert choice.impl.name == "fast"
    assert choice.rejected == (("torch", "fast comes before it"), ("reference", "fast comes before it"))


def test_what_is_missing_is_passed_over_with_the_reason() -> None:
    choice = choose(Provider([_impl(missing=lambda: "no such package")])).choices["swiglu"]
    assert choice.impl.name == "torch"
    assert ("fast", "no such package") in choice.rejected


def test_what_a_backend_refuses_is_not_used() -> None:
    choice = choose(Provider(refused={("attention", "torch"): "wedges the card"})).choices["attention"]
    assert choice.impl.name == "reference"
    assert ("torch", "wedges the card") in choice.rejected
    with pytest.raises(UserError, match=r"kernels.attention='torch' cannot be used here: wedges the card"):
        choose(Provider(refused={("attention", "torch"): "wedges the card"}), {"attention": "torch"})


def test_kernels_without_gradients_do_not_train() -> None:
    provider = Provider([_impl(differentiable=False)])
    assert choose(provider).choices["swiglu"].impl.name == "torch"
    assert choose(provider, training=False).choices["swiglu"].impl.name == "fast"


def test_by_name() -> None:
    chosen = choose(Provider([_impl()]), {"swiglu": "torch", "all": "reference"})
    assert chosen.names()["swiglu"] == "torch"
    assert set(chosen.names().values()) == {"torch", "reference"}
    assert chosen.choices["swiglu"].wanted
    assert choose(Provider([_impl()]), {"all": "fast"}).names()["gelu"] == "torch"  # it has none of that name


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"swiglu": "toch"}, r"kernels.swiglu='toch' is not known. Did you mean 'torch'\?"),
        ({"swigul": "torch"}, r"kernels.swigul: no such op. Did you mean 'swiglu'\?"),
        ({"all": "nothing"}, r"kernels.all='nothing' is not known"),
        ({"rms_norm": "fast"}, r"kernels.rms_norm='fast' is not known"),
    ],
)
def test_wrong_names_are_the_users(wanted: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose(Provider([_impl()]), wanted)


def test_refused_arguments_go_elsewhere_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    impl = _impl(refuses=lambda x: "float64" if x.dtype == torch.float64 else None)
    choice = choose(Provider([impl])).choices["swiglu"]
    assert choice.fallback is not None and choice.fallback.name == "torch"
    function, x = choice.function(), torch.randn(3, 4)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(function(x), x * 7)
        for _ in range(2):
            assert torch.allclose(function(x.double()), ops.swiglu(x.double()))
    assert caplog.messages == ["kernels.swiglu: fast does not take this (float64); torch does"]


def test_a_kernel_that_raises_is_not_retried() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("device error")

    impl = Impl(op="swiglu", name="b", load=lambda: broken, priority=99, source="-", refuses=lambda x: None)
    with pytest.raises(RuntimeError, match="device error"):
        choose(Provider([impl])).choices["swiglu"].function()(torch.randn(2, 2))


def test_binding_reaches_the_ops_and_does_not_change_under_way() -> None:
    x = torch.randn(3, 4)
    first = bind(choose(Provider([_impl()])))
    assert torch.equal(ops.swiglu(x), x * 7)
    assert bind(choose(Provider([_impl()]))) is first
    with pytest.raises(RuntimeError, match="bound already"):
        bind(choose(Provider()))
    with rebound(choose(Provider(), {"all": "reference"})):
        assert not torch.equal(ops.swiglu(x), x * 7)
    assert torch.equal(ops.swiglu(x), x * 7)


def test_report() -> None:
    chosen = choose(Provider([_impl()]), {"gelu": "reference"})
    unwritten = "gelu" + ("" if hasattr(F, "grouped_mm") else ", grouped_gemm")  # not in torch 2.9
    assert chosen.text() == f"fast (swiglu); reference ({unwritten}); torch (all others)"
    assert choose(Provider(), {"all": "reference"}).text() == "reference (all ops)"
    entry = next(e for e in chosen.describe({("swiglu", "fast"): "today"}) if e["op"] == "swiglu")
    assert (entry["implementation"], entry["evidence"], entry["source"]) == ("fast", "measured", "a paper")
    assert next(e for e in chosen.describe() if e["op"] == "swiglu")["evidence"] == "contract"
