"""Environment variables of `torch_xmlir`: what is refused, and what is advised. Facts with sources: docs/kunlun.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loongforge.kernels.backend import Problem

ALLOW_EVENTS = "LOONGFORGE_KUNLUN_ALLOW_KL3_EVENTS"
_OFF = ("", "0", "false")
_FALLBACK = {
    "XMLIR_ENABLE_FALLBACK_TO_CPU_BOOL": "False",
    "XMLIR_DUMP_FALLBACK_OP_LIST_BOOL": "true",
    "XMLIR_XDNN_PYTORCH_CHECK_ENABLE_FALLBACK_BOOL": "0",
}


def _is_on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() not in _OFF


def refusals(environ: Mapping[str, str]) -> Iterator[Problem]:
    """Settings under which nothing is started."""
    world = int(environ.get("WORLD_SIZE", "1"))
    if "XPU_RUN_MODE" in environ:
        yield _refused("XPU_RUN_MODE writes hardware registers of all cards at import [W12]", "XPU_RUN_MODE")
    if _is_on(environ, "XTORCHRUN_CLEAN"):
        yield _refused("XTORCHRUN_CLEAN kills every process that holds a card [W12]", "XTORCHRUN_CLEAN")
    if environ.get("XMLIR_DISABLE_CUDA_ALLOCATOR") == "1":
        text = "XMLIR_DISABLE_CUDA_ALLOCATOR=1 takes the allocator's figures away [W12]"
        yield _refused(text, "XMLIR_DISABLE_CUDA_ALLOCATOR")
    if _is_on(environ, "XPU_EVENT_KL3_ENABLE") and world > 1 and not _is_on(environ, ALLOW_EVENTS):
        text = f"XPU_EVENT_KL3_ENABLE with {world} processes: 16 of 18 runs with collectives hung on a P800 [R]"
        yield Problem(text, f"unset XPU_EVENT_KL3_ENABLE (or {ALLOW_EVENTS}=1, at your own risk)", fatal=True)
    if _is_on(environ, "DISABLE_XPYTORCH"):
        yield _refused("DISABLE_XPYTORCH leaves torch as it is [W10]", "DISABLE_XPYTORCH")


def _refused(text: str, name: str) -> Problem:
    return Problem(text, f"unset {name}", fatal=True)


def advice(environ: Mapping[str, str]) -> Iterator[Problem]:
    """Settings that are better otherwise."""
    if "XPU_VISIBLE_DEVICES" in environ:
        yield Problem("XPU_VISIBLE_DEVICES: sources disagree whether it works [V, FT, FP]", "use CUDA_VISIBLE_DEVICES")
    wrong = [f"{name}={value}" for name, value in _FALLBACK.items() if environ.get(name, "").lower() != value.lower()]
    if wrong:
        yield Problem("operations may fall back to the host without a word [L, RX, G]", f"export {' '.join(wrong)}")
    if "xcudart" not in environ.get("LD_LIBRARY_PATH", ""):
        text = "LD_LIBRARY_PATH names no xcudart: processes that torch starts may not find the driver [R, L]"
        yield Problem(text, "put the xcudart/lib folder of XPyTorch first on it")
