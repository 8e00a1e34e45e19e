"""What a run keeps of the Hugging Face folders that its weights came from, so that an export gives back the same
names, types, settings and tensors, whatever becomes of those folders.

    hf/origin.json            config.json; names and types of tensors
    hf/carried-<component>/   safetensors that are not built here, by bare name
    hf/files/                 generation config, processor and image processor
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loongforge.checkpoint.hf_checks import carried, tied_copies
from loongforge.checkpoint.hf_files import KEPT_FILES
from loongforge.checkpoint.hf_folder import DTYPES, STORED, HFFolder
from loongforge.checkpoint.hf_import import HFImport
from loongforge.checkpoint.hf_source import Finding
from loongforge.checkpoint.hf_write import Entry, write_safetensors
from loongforge.checkpoint.json_file import read_json

FOLDER = "hf"


@dataclass
class PartOrigin:
    """Of one component."""

    tensors: dict[str, tuple[str, str]]
    """Bare name -> the name in the folder, and the type."""
    is_whole: bool = False
    """The folder was a whole model's, so that its names are those of a whole."""
    copies: dict[str, str] = field(default_factory=dict)
    """Names in the folder that held a second copy -> the bare name of the tensor."""
    carried: HFFolder | None = None
    """Tensors by bare name."""


@dataclass
class Origin:
    """Of a whole run."""

    config: dict[str, Any] | None = None
    """`config.json` of the whole model, as it was."""
    parts: dict[str, PartOrigin] = field(default_factory=dict)
    files: Path | None = None


def write_origin(folder: Path, imports: Iterable[tuple[HFImport, Mapping[str, Finding]]]) -> None:
    """Writes `hf/` for imports that were made, the last of a component counts. One rank's work."""
    known = folder / "origin.json"
    table: dict[str, Any] = read_json(known) if known.is_file() else {"config": None, "components": {}}
    (folder / "files").mkdir(parents=True, exist_ok=True)
    for made, findings in imports:
        if made.family is not None:
            table["config"] = read_json(made.path / "config.json")
            for name in KEPT_FILES:
                if (made.path / name).is_file():
                    shutil.copyfile(made.path / name, folder / "files" / name)
        for name, finding in findings.items():
            table["components"][name] = _describe(made, name, finding)
            _carry(made, name, folder)
    (folder / "origin.json").write_text(json.dumps(table))


def _describe(made: HFImport, name: str, finding: Finding) -> dict[str, Any]:
    source = made.sources[name]
    tensors = source.folder.tensors
    kept = {**{bare: full for full, bare in _kept(made, name)}, **finding.taken}
    return {
        "whole": made.family is not None,
        "tensors": {bare: [full, tensors[full].dtype] for bare, full in kept.items()},
        "copies": tied_copies(source, finding),
    }


def _kept(made: HFImport, name: str) -> list[tuple[str, str]]:
    """Names and bare names of what is kept aside: of a component's own folder nothing that a whole model does not need,
    as integers, which older transformers saved."""
    source = made.sources[name]
    is_whole, tensors = made.family is not None, source.folder.tensors
    return [
        (full, bare)
        for full, bare in sorted(carried(source).items())
        if tensors[full].dtype in (STORED if is_whole else DTYPES) and (is_whole or not source.names.is_alone(bare))
    ]


def _carry(made: HFImport, name: str, folder: Path) -> None:
    source, kept = made.sources[name], _kept(made, name)
    if not kept:
        return
    tensors = source.folder.tensors
    entries = [Entry(bare, tensors[full].shape, STORED[tensors[full].dtype]) for full, bare in kept]
    aside = folder / f"carried-{name}"
    aside.mkdir(exist_ok=True)
    write_safetensors(aside, entries, (source.folder.read(full) for full, _ in kept), max_bytes=1 << 62)
    source.folder.close()


def read_origin(folder: Path) -> Origin:
    """What `write_origin` wrote; empty where nothing was imported."""
    if not (folder / "origin.json").is_file():
        return Origin()
    table = read_json(folder / "origin.json")
    parts = {}
    for name, part in table["components"].items():
        aside = folder / f"carried-{name}"
        tensors = {bare: (full, dtype) for bare, (full, dtype) in part["tensors"].items()}
        kept = HFFolder(aside) if aside.is_dir() else None
        parts[name] = PartOrigin(tensors, part["whole"], part["copies"], kept)
    return Origin(table["config"], parts, folder / "files")
