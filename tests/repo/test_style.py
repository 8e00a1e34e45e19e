"""Rules of style that no linter has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import LONG_FILES
from tests.repo.files import REPO, python_files, repo_files, source_modules

_MAX_FILE, _MAX_FUNCTION = 400, 80
_TEXT = (".py", ".md", ".yaml", ".toml", ".sh", ".txt", ".json", "")
# Assembled, so that this file passes its own test.
_MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:" + "|".join(["work", "root", "Users", "mnt", "home"]) + r")/\w")


def test_files_and_functions_are_short() -> None:
    problems = []
    for file in python_files():
        text = file.read_text(encoding="utf-8")
        lines = text.count("\n")
        if lines > _MAX_FILE:
            problems.append(f"{file}: {lines} lines, at most {_MAX_FILE}; give a part of it a file of its own")
        problems += [f"{file}:{f.lineno}: {f.name} has more than {_MAX_FUNCTION} lines" for f in _long_functions(text)]
    assert not problems, "\n".join(problems)


def _parse_as_oldest_python(text: str) -> None:
    ast.parse(text, feature_version=(3, 10))  # `requires-python` of pyproject.toml


def test_syntax_is_that_of_the_oldest_python() -> None:
    for file in python_files():
        _parse_as_oldest_python(file.read_text(encoding="utf-8"))


def test_newer_syntax_is_recognised() -> None:
    with pytest.raises(SyntaxError):
        _parse_as_oldest_python("try:\n    pass\nexcept* ValueError:\n    pass\n")


def _long_functions(text: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [f for f in functions if (f.end_lineno or 0) - f.lineno + 1 > _MAX_FUNCTION]


def test_long_functions_are_recognised() -> None:
    body = "    x = 1\n"
    assert not _long_functions("def f():\n" + body * (_MAX_FUNCTION - 1))
    assert _long_functions("def f():\n" + body * _MAX_FUNCTION)


def test_no_paths_of_one_machine() -> None:
    found = []
    for file in repo_files():
        if file.suffix in _TEXT:
            lines = file.read_text(encoding="utf-8").splitlines()
            found += [f"{file.relative_to(REPO)}:{n}" for n, line in enumerate(lines, 1) if _MACHINE_PATH.search(line)]
    assert not found, "these lines name a path of one machine: " + ", ".join(found)


def test_machine_paths_are_recognised() -> None:
    assert _MACHINE_PATH.search("cd " + "/".join(["", "work", "main"]))
    assert _MACHINE_PATH.search('"' + "/".join(["", "home", "someone", "data"]))
    assert not _MACHINE_PATH.search("docs/" + "/".join(["how", "work", "goes"]))


def test_every_test_folder_is_a_package() -> None:
    """Else a rank cannot import what it shall run, and two files of one name collide."""
    folders = {file.parent for file in (REPO / "tests").rglob("test_*.py")}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_component_families_do_not_import_each_other() -> None:
    """import-linter holds the kinds apart; here the families within a kind."""
    found = []
    for name, file in source_modules().items():
        family = _family(name)
        if family:
            imported = (other for other in _imports(file) if _family(other) not in (None, family))
            found += [f"{name} imports {other}" for other in imported]
    assert not found


def _family(module: str) -> str | None:
    """`loongforge.components.llm.llama` of any module in that folder; None elsewhere."""
    parts = module.split(".")
    kind_folder = "/".join(["loongforge", *parts[1:3]])
    if parts[:2] != ["loongforge", "components"] or len(parts) < 4 or not (REPO / kind_folder / parts[3]).is_dir():
        return None
    return ".".join(parts[:4])


def _imports(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_long_files_exist() -> None:
    assert [name for name in LONG_FILES if not (REPO / "tests" / name).is_file()] == []
