"""`loongforge recipes`: lists, shows and copies recipes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from loongforge.cli.parser import Parser, pick
from loongforge.config.errors import UserError
from loongforge.config.recipes import find_recipe, recipe_files

_SUBVERBS = {"list": "names and what they train", "show": "print a recipe", "copy": "copy a recipe to edit it"}


def run(argv: Sequence[str]) -> int:
    """Runs a sub-verb; returns the exit code."""
    verb, rest = pick("recipes", argv, _SUBVERBS)
    return {"list": _list, "show": _show, "copy": _copy}[verb](rest)


def _list(argv: Sequence[str]) -> int:
    Parser("recipes list", "Lists the built-in recipes.", "  loongforge recipes list").parse(argv)
    for name, file in sorted(recipe_files().items()):
        print(f"{name:<18}{summary(file)}")
    return 0


def summary(file: Path) -> str:
    """The first sentence of a recipe's header, without the name in front."""
    comments = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.lstrip("# "))
    text = " ".join(comments).partition(f"{file.stem}: ")[2]
    return re.split(r"\.\s|\s{2,}", text)[0].rstrip(".")


def _show(argv: Sequence[str]) -> int:
    parser = Parser("recipes show", "Prints a recipe as it is written.", "  loongforge recipes show llava_sft")
    parser.add_argument("name", help="a recipe's name, or a file")
    print(find_recipe(parser.parse(argv).name).path.read_text(encoding="utf-8"), end="")
    return 0


def _copy(argv: Sequence[str]) -> int:
    examples = "  loongforge recipes copy llava_sft mine.yaml\n  loongforge train +recipe=mine.yaml"
    parser = Parser("recipes copy", "Copies a recipe, to be edited and run by its path.", examples)
    parser.add_argument("name", help="a recipe's name")
    parser.add_argument("to", nargs="?", metavar="FILE", help="default: NAME.yaml in this folder")
    parser.add_argument("--force", action="store_true", help="replace FILE where it exists")
    args = parser.parse(argv)
    source = find_recipe(args.name).path
    target = Path(args.to or source.name)
    target = target / source.name if target.is_dir() else target
    if target.exists() and not args.force:
        raise UserError(f"{target} exists; give another name, or --force to replace it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    print(f"{target}: edit it, then loongforge train +recipe={target if '/' in str(target) else f'./{target}'}")
    return 0
