"""Every rule of the table has a source, and a call that breaks it is refused, for that rule."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch_xmlir
from flash_attn import flash_attn_varlen_func
from torch_xmlir.contract import RULES, TABLE, ContractViolation, require
from torch_xmlir.nn.rms_norm import RMSNormFunction
from torch_xmlir.nn.rope import FusedRoPEFunc
from torch_xmlir.nn.swiglu import SwiGLUFunction


def _rms(x: Any = None, weight: Any = None, flags: tuple[Any, Any] = (False, False)) -> Any:
    x = torch.randn(4, 8) if x is None else x
    return RMSNormFunction.apply(x, 1e-5, torch.ones(8) if weight is None else weight, *flags)


def _rope(**changes: Any) -> Any:
    args = {
        "q": torch.randn(6, 2, 8),
        "k": None,
        "v": None,
        "cos": torch.randn(6, 1, 1, 8),
        "sin": torch.randn(6, 1, 1, 8),
        "ends": torch.tensor([0, 6]),
        "layout": "THD",
        "interleaved": False,
    }
    return FusedRoPEFunc.apply(*{**args, **changes}.values())


def _attend(**changes: Any) -> Any:
    ends = torch.tensor([0, 2, 6], dtype=torch.int32)
    rows = {name: torch.randn(6, 2, 8, dtype=torch.bfloat16) for name in "qkv"}
    lengths = {"cu_seqlens_q": ends, "cu_seqlens_k": ends, "max_seqlen_q": 4, "max_seqlen_k": 4}
    return flash_attn_varlen_func(**{**rows, **lengths, **changes})


class _DTensor(torch.Tensor):
    def to_local(self) -> torch.Tensor:
        return torch.Tensor(self)


def _thin(rows: int, *shape: int) -> torch.Tensor:
    return torch.randn(rows, *shape[:-1], 2 * shape[-1], dtype=torch.bfloat16)[..., ::2]


BREACHES: dict[str, Callable[[], Any]] = {
    "rms_norm.contiguous": lambda: _rms(torch.randn(4, 16)[:, ::2]),
    "rms_norm.dtype": lambda: _rms(torch.randn(4, 8).bfloat16()),
    "rms_norm.weight": lambda: _rms(weight=torch.ones(1, 8)),
    "rms_norm.flags": lambda: _rms(flags=(True, False)),
    "rope.contiguous": lambda: _rope(q=torch.randn(6, 2, 16)[..., ::2]),
    "rope.rank": lambda: _rope(q=torch.randn(6, 1, 2, 8)),
    "rope.one_tensor": lambda: _rope(k=torch.randn(6, 2, 8)),
    "rope.angles": lambda: _rope(cos=torch.randn(6, 8)),
    "rope.angles_dtype": lambda: _rope(cos=torch.randn(6, 1, 1, 8).bfloat16()),
    "rope.cu_seqlens": lambda: _rope(ends=torch.tensor([0, 6], dtype=torch.int32)),
    "rope.layout": lambda: _rope(interleaved=True),
    "swiglu.rank": lambda: SwiGLUFunction.apply(torch.randn(2, 3, 8)),
    "swiglu.not_empty": lambda: SwiGLUFunction.apply(torch.randn(0, 8)),
    "swiglu.contiguous": lambda: SwiGLUFunction.apply(torch.randn(4, 16)[:, ::2]),
    "attention.contiguous": lambda: _attend(k=_thin(6, 2, 8)),
    "attention.rank": lambda: _attend(q=torch.randn(1, 6, 2, 8).bfloat16()),
    "attention.dtype": lambda: _attend(**{name: torch.randn(6, 2, 8) for name in "qkv"}),
    "attention.cu_seqlens": lambda: _attend(cu_seqlens_q=torch.tensor([0, 2, 6])),
    "attention.not_empty": lambda: _attend(
        **{name: torch.randn(0, 2, 8).bfloat16() for name in "qkv"},
        **{f"cu_seqlens_{name}": torch.tensor([0, 0], dtype=torch.int32) for name in "qk"},
    ),
    "attention.longest": lambda: _attend(max_seqlen_q=6),
    "attention.no_dropout": lambda: _attend(dropout_p=0.1),
    "dtypes.no_fp64": lambda: _rms(torch.randn(4, 8).double(), torch.ones(8).double()),
    "dtensor.local": lambda: _rms(torch.randn(4, 8).as_subclass(_DTensor)),
    "dist.explicit": lambda: dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1),
    "streams.no_priority_range": lambda: torch.cuda.Stream.priority_range(),
}


def test_every_row_is_cited() -> None:
    rows = TABLE["rules"] + TABLE["behaviours"]
    assert all(row["source"] and row["confidence"] in "ABC" and row["rule"] for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert set(BREACHES) == set(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_a_breach_is_refused(rule: str) -> None:
    with pytest.raises(ContractViolation) as caught:
        BREACHES[rule]()
    assert caught.value.rule == rule


def test_without_the_breach_all_is_well() -> None:
    assert _rms().shape == (4, 8)
    assert _rope()[0].shape == (6, 2, 8)
    assert SwiGLUFunction.apply(torch.randn(4, 16)).shape == (4, 8)
    assert _attend().shape == (6, 2, 8)


def test_no_rule_without_a_source() -> None:
    with pytest.raises(KeyError, match="no rule without a source"):
        require("rope.colour", True)


def _lse() -> bool:
    _, sums, _ = _attend(return_attn_probs=True)
    return sums.shape == (2, 2, 4)


def _causal_from_the_end() -> bool:
    """Two queries of four keys: the first one sees three."""
    q, kv = torch.randn(2, 1, 8).bfloat16(), torch.randn(4, 1, 8).bfloat16()
    ends = {"cu_seqlens_q": torch.tensor([0, 2], dtype=torch.int32), "cu_seqlens_k": torch.tensor([0, 4]).int()}
    whole = _attend(q=q, k=kv, v=kv, **ends, max_seqlen_q=2, max_seqlen_k=4, causal=True)
    ends["cu_seqlens_k"] = torch.tensor([0, 3]).int()
    ends["cu_seqlens_q"] = torch.tensor([0, 1]).int()
    first = _attend(q=q[:1], k=kv[:3], v=kv[:3], **ends, max_seqlen_q=1, max_seqlen_k=3)
    return torch.equal(whole[:1], first)


def _silu_first() -> bool:
    x = torch.randn(3, 8)
    return torch.allclose(SwiGLUFunction.apply(x), torch.nn.functional.silu(x[:, :4]) * x[:, 4:])


def _renamed() -> bool:
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            real = dist.distributed_c10d._world.pg_map[dist.group.WORLD][0]
        return dist.get_backend() == "nccl" and "kccl" in real
    finally:
        dist.destroy_process_group()


def _function() -> None: ...


BEHAVIOURS: dict[str, Callable[[], bool]] = {
    "dist.renamed": _renamed,
    "device.name": lambda: (torch.cuda.get_device_name(0), torch.cuda.get_device_capability()) == ("GPU", (8, 6)),
    "memory.stats": lambda: torch.cuda.memory_stats() == {},
    "events.query": lambda: torch.cuda.Event().query(),
    "events.elapsed": lambda: torch.cuda.Event().elapsed_time(torch.cuda.Event()) == 0,
    "compile.identity": lambda: torch.compile(_function) is _function and torch.compile()(_function) is _function,
    "version.mapping": lambda: (
        isinstance(torch_xmlir.__version__, dict) and not isinstance(torch_xmlir.__version__, str)
    ),
    "attention.lse": _lse,
    "attention.causal": _causal_from_the_end,
    "swiglu.half": _silu_first,
    "patched.linear": lambda: torch.nn.Linear.__module__.startswith("torch_xmlir"),
}


def test_every_behaviour_is_there() -> None:
    assert {row["id"] for row in TABLE["behaviours"]} == set(BEHAVIOURS)
    assert [name for name, holds in BEHAVIOURS.items() if not holds()] == []
