"""Index files with the metadata of every sample of a data file (`NAME.meta.npz`), written by `loongforge data index`.

An index is used while it fits: the data file has the size and time of change that it had, and everything that decides
the metadata (tokenizer, chat template, limits) is the same. Image files beside a JSON file are not looked at again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from loongforge.data.meta_columns import MetaColumns
from loongforge.data.processing import SampleProcessor
from loongforge.data.sources import Source
from loongforge.data.sources.cache import cache_path, read_arrays, read_header, write_arrays
from loongforge.data.sources.files import stamp

_VERSION = 2
_vocabularies: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # hashing a large one takes a tenth of a second


def meta_path(file: str, index_dir: str | None) -> Path | None:
    """Where the metadata of a data file lie; None: nowhere, as it is remote and there is no `data.index_dir`."""
    return cache_path(file, ".meta.npz", index_dir)


def fingerprint(processor: SampleProcessor) -> dict[str, Any]:
    """What decides the metadata of a sample, but for the sample."""
    tokenizer, images = processor.tokenizer, processor.image_processor
    if tokenizer not in _vocabularies:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
        _vocabularies[tokenizer] = _hash(f"{vocabulary} {tokenizer.bos_token_id} {tokenizer.eos_token_id}")
    return {
        "tokenizer": _vocabularies[tokenizer],
        "chat template": _hash(str(tokenizer.chat_template)),
        "image token": [processor.image_token, processor.placeholder, processor.num_image_tokens],
        "image ends": processor.image_ends,
        "image size": images.description() if images is not None else None,
        "longest sample": [processor.max_length, processor.too_long],
        "data.max_sample_bytes": processor.max_sample_bytes,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _header(source: Source, part: int, processor: SampleProcessor) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "data": stamp(source.parts[part].path),
        "image folder": source.image_dir,
        **fingerprint(processor),
    }


def read_index(
    source: Source, part: int, processor: SampleProcessor, decode: bool, index_dir: str | None
) -> tuple[MetaColumns | None, str | None]:
    """(metadata of a data file's samples, or None where no index fits; why one that is there does not).

    Args:
        source: the source of the file.
        part: the file's number in it.
        processor: the run's.
        decode: images must have been decoded; an index for which they were serves either way.
        index_dir: `data.index_dir`.
    """
    path = meta_path(source.parts[part].path, index_dir)
    if path is None or not path.exists():
        return None, None
    found = read_header(path)
    if found is None:
        return None, "its index is damaged"
    decoded = found.pop("decoded", False)
    wanted = _header(source, part, processor)
    differs = [name for name in wanted if found.get(name) != wanted[name]]
    if differs:
        return None, f"its index was made with another {' and '.join(differs)}"
    if decode and not decoded:
        return None, "its index was made without decoding images (loongforge data index --decode)"
    arrays = read_arrays(path, {**wanted, "decoded": decoded})
    if arrays is None or len(arrays["text"]) != source.parts[part].stop - source.parts[part].start:
        return None, "its index is damaged"
    return MetaColumns.of_arrays(arrays), None


def write_index(
    source: Source, part: int, processor: SampleProcessor, decode: bool, path: Path, columns: MetaColumns, data: str
) -> None:
    """Writes the metadata of all samples of a data file; OSError where that is impossible.

    Args:
        source, part, processor, decode: as for `read_index`.
        path: from `meta_path`.
        columns: complete.
        data: the data file's stamp before the samples were read.
    """
    write_arrays(path, {**_header(source, part, processor), "data": data, "decoded": decode}, columns.arrays())
