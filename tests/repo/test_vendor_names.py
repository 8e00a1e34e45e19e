"""Only backends know what torch calls a vendor's devices and collectives; read from the syntax trees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repo.files import REPO, python_files

_LITERALS = re.compile(r"(cuda|xpu|npu|mps|hip)(:\d+)?|(cpu:gloo,\S+)|nccl|gloo|kccl|bccl|xccl|flagcx")
"""Strings that are a device or a library of collectives, whole."""
_METHODS = {"cuda", "get_device_capability", "is_cuda"}
_DEVICE_MAKERS = {"device", "map_location", "device_type"}


def _chain(node: ast.AST) -> str:
    """`torch.cuda.empty_cache` of the attribute; the empty string of anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _breaches(source: str) -> Iterator[tuple[int, str]]:
    """Line and what is wrong."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            if _chain(node).startswith("torch.cuda") or node.attr in _METHODS:
                yield node.lineno, f"{_chain(node) or node.attr}"
            elif node.attr == "type" and isinstance(node.value, ast.Attribute) and node.value.attr == "device":
                yield node.lineno, "device.type"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            if any(name.startswith("torch.cuda") for name in names) or names[:2] == ["torch", "cuda"]:
                yield node.lineno, "import of torch.cuda"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _LITERALS.fullmatch(node.value):
            yield node.lineno, repr(node.value)
        elif isinstance(node, ast.Call):
            yield from _device_literals(node)


def _device_literals(call: ast.Call) -> Iterator[tuple[int, str]]:
    """`device="cpu"`, `torch.device("cpu")`, `x.to("cpu")`: a placement that no backend has chosen ("meta" is none)."""
    named = [keyword.value for keyword in call.keywords if keyword.arg in _DEVICE_MAKERS]
    first = call.args[:1] if _chain(call.func).endswith(("torch.device", ".to")) else []
    for value in [*named, *first]:
        if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value != "meta":
            yield value.lineno, f"device {value.value!r}"


def _checked() -> list[Path]:
    inside = (REPO / "loongforge", REPO / "scripts")
    return [file for file in python_files() if any(root in file.parents for root in inside)]


def test_only_backends_name_devices_and_collectives() -> None:
    found = [
        f"{file.relative_to(REPO)}:{line}: {what}"
        for file in _checked()
        for line, what in _breaches(file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "torch.cuda.synchronize()",
        "x = torch.cuda.is_available",
        "import torch.cuda",
        "from torch import cuda",
        "from torch.cuda import Event",
        "dist.init_process_group('nccl')",
        "dist.new_group(backend='gloo')",
        "init('cpu:gloo,cuda:nccl')",
        "if x.device.type == kind: pass",
        "x.is_cuda",
        "x.cuda()",
        "major, _ = props.get_device_capability()",
        "torch.zeros(1, device='cuda:0')",
        "torch.zeros(1, device='cpu')",
        "torch.device('cpu')",
        "x.to('cpu')",
        "torch.load(f, map_location='cpu')",
    ],
)
def test_breaches_are_recognised(source: str) -> None:
    assert list(_breaches(source))


def test_words_are_no_breach() -> None:
    fine = (
        "'cuda is a word in a sentence'",
        "name = 'cpu'",
        "x.to(device)",
        "model_parallel_cuda_manual_seed(1)",
        "x.cpu()",
    )
    assert not [source for source in fine if list(_breaches(source))]
