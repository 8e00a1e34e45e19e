"""Files of a Hugging Face folder beside its weights: all of them can be read, or one message names the one that cannot.

They are copied into checkpoints and exports as they are, and a torn one would come to light only there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loongforge.checkpoint.json_file import read_json
from loongforge.config.errors import UserError

KEPT_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""That a run keeps of the folder that it started from."""
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    *TEMPLATE_FILES,
)
"""That come with a tokenizer."""


def check_files(folder: Path) -> None:
    """Reads the small files of a folder: JSON that is whole, chat templates without mistakes in their syntax.

    Raises:
        UserError: naming the file.
    """
    found = {
        name: read_json(folder / name)
        for name in (*KEPT_FILES, *TOKENIZER_FILES)
        if name.endswith(".json") and (folder / name).is_file()
    }
    for name, text in _templates(folder, found):
        _check_template(folder / name, text)


def _templates(folder: Path, found: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """(file, template) of all that a tokenizer or a processor has."""
    for name in ("chat_template.json", "tokenizer_config.json"):
        value = found.get(name, {}).get("chat_template")
        several: list[Any] = [one.get("template") for one in value] if isinstance(value, list) else [value]
        yield from ((name, text) for text in several if isinstance(text, str))
    for file in (folder / "chat_template.jinja", *sorted(folder.glob("additional_chat_templates/*.jinja"))):
        if file.is_file():
            try:
                yield str(file.relative_to(folder)), file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"cannot read {file}: {error}") from error


def _check_template(file: Path, text: str) -> None:
    import jinja2
    from transformers.utils.chat_template_utils import _compile_jinja_template  # with the tags that templates have

    try:
        _compile_jinja_template(text)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{file}: the chat template has a mistake in line {error.lineno}: {error.message}") from error
