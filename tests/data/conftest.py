"""Small data sets to read, and the processor of the built-in one."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loongforge.config.schema import DataConfig
from loongforge.data import builtin
from loongforge.data.images import ImageProcessor
from loongforge.data.processing import SampleProcessor
from loongforge.data.sources.shard_writer import write_shards
from loongforge.data.tokenizer import load_tokenizer


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builtin.build("digits_vqa", tmp_path_factory.mktemp("data") / "digits_vqa")


@pytest.fixture(scope="session")
def pydoc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builtin.build("pydoc_text", tmp_path_factory.mktemp("data") / "pydoc_text")


@pytest.fixture(scope="session")
def processor(digits: Path) -> SampleProcessor:
    images = ImageProcessor(32, [0.30] * 3, [0.38] * 3)
    return SampleProcessor(
        load_tokenizer(digits / "tokenizer"), max_length=64, num_image_tokens=4, image_processor=images
    )


def png(value: int = 100, size: tuple[int, int] = (32, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "PNG")
    return buffer.getvalue()


def chat(question: str = "<image>\nWhich digit is shown?", answer: str = "7") -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def shard_sample(number: int, **changes: bytes) -> tuple[str, dict[str, bytes]]:
    key = f"s{number:04d}"
    record = {"id": f"id{number}", "messages": chat(answer=str(number))}
    return key, {"json": json.dumps(record).encode(), "0.png": png(number % 256), **changes}


def write_tar(folder: Path, number: int, prefix: str = "a", per_shard: int = 10) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return write_shards(folder, prefix, [shard_sample(i) for i in range(number)], per_shard)


def add_members(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_jsonl(folder: Path, records: list[dict[str, Any] | str], name: str = "a.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def config(train: Any, **changes: Any) -> DataConfig:
    return DataConfig(train=train, tokenizer="unused", **{"prefetch": 0, **changes})


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((a == b).all())
