"""The CUDA backend without a GPU: what it asks, and that adapters call packages as their documentation says.

The packages are stood in for by plain formulas with the documented signatures. That proves the calls, not the kernels.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import loongforge_backends.cuda as module
import pytest
import torch
from loongforge_backends.cuda import CudaBackend, torch_kernels
from loongforge_backends.cuda import kernels as cuda_kernels

from loongforge.kernels import reference
from loongforge.kernels.backend import CAPABILITIES
from loongforge.kernels.cases import Case, cases, placed, run
from loongforge.kernels.registry import choose


def _varlen(
    q: Any, k: Any, v: Any, ends_q: Any, ends_k: Any, most_q: int, most_k: int, scale: float, causal: bool
) -> Any:
    assert ends_q.dtype == ends_k.dtype == torch.int32
    assert most_q == most_k == int(ends_q.diff().max())
    return reference.attention_varlen(q, k, v, ends_q, causal=causal, scale=scale)


def flash_attn_varlen_func(
    q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: Any = None, causal: bool = False, window_size: Any = (-1, -1),
) -> Any:  # fmt: skip
    """flash_attn/flash_attn_interface.py"""
    return _varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal)


def flash_attn_func(
    q: Any, k: Any, v: Any, dropout_p: float = 0.0, softmax_scale: Any = None, causal: bool = False
) -> Any:
    """flash_attn/flash_attn_interface.py: `[B, S, heads, D]`."""
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    return reference.attention(q, k, v, causal=causal, scale=softmax_scale).transpose(0, 1)


def varlen_attn(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
    scale: Any = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """torch/nn/attention/varlen.py"""
    assert enable_gqa or query.shape[1] == key.shape[1]
    causal = {(-1, 0): True, (-1, -1): False}[window_size]
    return _varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, causal)


def varlen_attn_2_10(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, is_causal: bool = False,
    return_aux: Any = None,
) -> Any:  # fmt: skip
    """docs.pytorch.org, 2.10: no scale, no shared keys"""
    assert query.shape == key.shape
    return _varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, query.shape[-1] ** -0.5, is_causal)


def varlen_attn_2_11(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
    return_aux: Any = None, scale: Any = None, window_size: tuple[int, int] = (-1, -1),
) -> Any:  # fmt: skip
    """docs.pytorch.org, main before 2.12: no shared keys"""
    return varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


class DotProductAttention:
    """transformer_engine/pytorch/attention/dot_product_attention"""

    def __init__(
        self, num_attention_heads: int, kv_channels: int, num_gqa_groups: Any = None, attention_dropout: float = 0.0,
        qkv_format: str = "sbhd", attn_mask_type: str = "causal", softmax_scale: Any = None,
    ) -> None:  # fmt: skip
        masks = {"thd": {"padding_causal": True, "padding": False}, "sbhd": {"causal": True, "no_mask": False}}
        self.causal, self.packed = masks[qkv_format][attn_mask_type], qkv_format == "thd"
        self.heads, self.groups, self.scale = num_attention_heads, num_gqa_groups, softmax_scale

    def __call__(self, q: Any, k: Any, v: Any, **packed: Any) -> Any:
        assert (q.shape[-2], k.shape[-2]) == (self.heads, self.groups)
        if not self.packed:
            return reference.attention(q, k, v, causal=self.causal, scale=self.scale).flatten(2)
        names = ("cu_seqlens_q", "cu_seqlens_kv", "max_seqlen_q", "max_seqlen_kv")
        return _varlen(q, k, v, *(packed[name] for name in names), self.scale, self.causal).flatten(1)


class LigerRMSNormFunction:
    """liger_kernel/ops/rms_norm.py"""

    @staticmethod
    def apply(
        x: Any, weight: Any, eps: float, offset: float = 0.0, casting: str = "llama", in_place: bool = True
    ) -> Any:
        assert (offset, in_place) == (0.0, False)  # in place would change what residuals still need
        return reference.rms_norm(x, weight, eps)


class LigerSiLUMulFunction:
    """liger_kernel/ops/swiglu.py"""

    @staticmethod
    def apply(a: Any, b: Any) -> Any:
        return torch.nn.functional.silu(a) * b


PACKAGES = {
    "flash_attn": {"flash_attn_func": flash_attn_func, "flash_attn_varlen_func": flash_attn_varlen_func},
    "torch.nn.attention.varlen": {"varlen_attn": varlen_attn},
    "transformer_engine": {},
    "transformer_engine.pytorch": {"DotProductAttention": DotProductAttention},
    "liger_kernel": {},
    "liger_kernel.ops": {},
    "liger_kernel.ops.rms_norm": {"LigerRMSNormFunction": LigerRMSNormFunction},
    "liger_kernel.ops.swiglu": {"LigerSiLUMulFunction": LigerSiLUMulFunction},
}


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, contents in PACKAGES.items():
        made = ModuleType(name)
        made.__spec__ = importlib.util.spec_from_loader(name, None)
        vars(made).update(contents)
        monkeypatch.setitem(sys.modules, name, made)
    cuda_kernels._te_module.cache_clear()


IMPLS = [impl for impl in cuda_kernels.kernels() if impl.op != "adamw"]


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("impl", IMPLS, ids=lambda impl: f"{impl.op}-{impl.name}")
def test_calls_follow_the_documentation(impl: Any) -> None:
    assert impl.missing() is None
    taken = 0
    for case in cases(impl.op):
        arguments: Case = placed(impl.op, case, torch.bfloat16)
        if impl.refuses is None or impl.refuses(*arguments.args, **arguments.kwargs) is None:
            taken += 1
            found = run(impl.load(), impl.op, case, torch.bfloat16)
            right = run(getattr(reference, impl.op), impl.op, case, torch.bfloat16)
            for a, b in zip([*found[0], *found[1]], [*right[0], *right[1]], strict=True):
                assert torch.allclose(a.double(), b.double(), atol=0.1, rtol=0.05)
    assert taken


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("old", [varlen_attn_2_10, varlen_attn_2_11], ids=lambda old: old.__name__)
def test_varlen_attention_of_older_torch(old: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["torch.nn.attention.varlen"], "varlen_attn", old)
    for case in cases("attention_varlen"):
        found = run(torch_kernels.varlen(), "attention_varlen", case, torch.float64)
        right = run(reference.attention_varlen, "attention_varlen", case, torch.float64)
        for a, b in zip([*found[0], *found[1]], [*right[0], *right[1]], strict=True):
            assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.usefixtures("packages")
def test_the_best_are_taken_where_they_are_installed() -> None:
    chosen = choose(CudaBackend())
    expected = {"attention": "flash_attn", "attention_varlen": "flash_attn", "rms_norm": "liger", "swiglu": "liger"}
    assert {op: chosen.names()[op] for op in expected} == expected
    te = choose(CudaBackend(), {"attention_varlen": "te", "attention": "te"}).names()
    assert (te["attention"], te["attention_varlen"]) == ("te", "te")
    fallback = chosen.choices["attention"].fallback
    assert fallback is not None
    assert fallback.name == "torch"  # float32 and masks go to SDPA


def test_without_packages_torch_serves() -> None:
    names = choose(CudaBackend()).names()
    assert (names["attention"], names["rms_norm"], names["adamw"]) == ("torch", "torch_fused", "fused")
    assert names["linear_cross_entropy"] == "large_pieces"


@pytest.mark.parametrize(
    ("dtype", "kwargs", "why"),
    [
        (torch.float32, {}, "dtype torch.float32"),
        (torch.bfloat16, {"mask": torch.ones(1)}, "a mask"),
        (torch.bfloat16, {}, None),
    ],
)
def test_flash_attention_takes_half_precision_without_masks(dtype: torch.dtype, kwargs: Any, why: str | None) -> None:
    q = torch.randn(4, 1, 2, 64, dtype=dtype)
    impl = next(impl for impl in IMPLS if (impl.op, impl.name) == ("attention", "flash_attn"))
    assert impl.refuses is not None
    assert impl.refuses(q, q, q, causal=False, scale=1.0, **kwargs) == why


def test_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "signs", tuple)
    assert CudaBackend().detect().state == "absent"
    monkeypatch.setattr(module, "signs", lambda: ("/dev/nvidiactl",))
    monkeypatch.setattr(torch.version, "cuda", None)
    found = CudaBackend().detect()
    assert (found.state, found.usable) == ("no_device", False)
    assert "built without CUDA" in found.why_not()
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert CudaBackend().detect().state == "no_device"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    found = CudaBackend().detect()
    assert (found.state, found.usable) == ("ok", True)
    assert '2 x "NVIDIA H200"' in found.evidence
    assert CudaBackend().peak_flops("bf16") == 989e12
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: SimpleNamespace() if name == "torch_xmlir" else real(name)
    )
    assert not CudaBackend().detect().usable  # those would be Kunlun's


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 NVL", 835e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H20", 0)],
)
def test_peaks_of_boards_with_like_names(name: str, peak: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
    assert (CudaBackend().peak_flops("bf16") or 0) == peak


def test_memory_leaves_out_what_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5, 10))
    monkeypatch.setattr(torch.cuda, "memory_stats", dict)
    assert CudaBackend().memory() == {"total": 10, "free": 5}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: {"allocated_bytes.all.current": 3})
    assert CudaBackend().memory()["allocated"] == 3


def _all_members(check: Callable[[Any], object]) -> None:
    from loongforge_backends.cpu import CpuBackend
    from loongforge_backends.kunlun import KunlunBackend

    for backend in (CpuBackend(), CudaBackend(), KunlunBackend()):
        check(backend)


def test_every_capability_has_an_answer_and_a_source() -> None:
    def check(backend: Any) -> None:
        for name in CAPABILITIES:
            support = backend.capability(name)
            assert support.value in ("yes", "no", "unknown")
            assert support.source.startswith(("documented: ", "probed: "))

    _all_members(check)
