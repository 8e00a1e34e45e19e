"""Chat messages: what is checked before they are rendered, and the form a chat template wants them in."""

from __future__ import annotations

import re
from typing import Any

from loongforge.data.sample import SampleError

Message = dict[str, Any]

ROLES = ("system", "user", "assistant")

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_READS_PARTS = re.compile(r"""\[['"]type['"]\]|\.type\b|['"]type['"]\s*,""")
_READS_STRINGS = re.compile(r"is (not )?(string|iterable|sequence|mapping)")

GENERATION_HELP = (
    "has no {% generation %} block, so nothing says which tokens are answers. Put "
    "{% generation %}...{% endgeneration %} around what the assistant writes, its end token included, in a copy of the "
    "template, for instance: {% if message['role'] == 'assistant' %}ASSISTANT: "
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{% endif %}, and give that file as "
    "data.chat_template"
)


def marks_answers(template: str) -> bool:
    """Whether a chat template says which part of a conversation the assistant wrote."""
    return _GENERATION.search(template) is not None


def check_roles(messages: list[Message], *, ends_with: str) -> None:
    """An optional system message, then user and assistant in turn, up to `ends_with`.

    Raises:
        SampleError: naming the message that is out of order.
    """
    turns = messages[1:] if messages and messages[0].get("role") == "system" else messages
    first = len(messages) - len(turns)
    for i, message in enumerate(turns):
        expected = ("user", "assistant")[i % 2]
        if message.get("role") != expected:
            raise SampleError(
                f"message {first + i} has role '{message.get('role')}' where '{expected}' is expected; allowed: "
                "an optional 'system' first, then 'user' and 'assistant' in turn",
                problem="role_order" if message.get("role") in ROLES else "unknown_role",
            )
    if not turns or turns[-1]["role"] != ends_with:
        raise SampleError(
            f"the last message must be of role '{ends_with}'; the roles are {[m.get('role') for m in messages]}",
            problem="no_answer",
        )


def count_placeholders(messages: list[Message], image_token: str) -> int:
    """Images that the messages ask for: `image_token` in a string, or parts of type `image`.

    Raises:
        SampleError: content of another shape, or an image token typed inside a text part or an answer.
    """
    counts = [_placeholders(i, message.get("content"), image_token) for i, message in enumerate(messages)]
    for i, (message, count) in enumerate(zip(messages, counts, strict=True)):
        if count and message.get("role") == "assistant":
            raise SampleError(
                f"the answer in message {i} holds '{image_token}'; images are shown to the model, not written",
                problem="image_token_in_text",
            )
    return sum(counts)


def refuse_in_text(messages: list[Message], image_token: str) -> None:
    """Where images have a placeholder of their own, their token may not be typed.

    Raises:
        SampleError: it is.
    """
    for i, message in enumerate(messages):
        content = message["content"]
        texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        if any(image_token in text for text in texts):
            raise SampleError(
                f"message {i} holds the characters '{image_token}', which the tokenizer cannot tell from an image; "
                "reword it",
                problem="image_token_in_text",
            )


def _placeholders(number: int, content: Any, image_token: str) -> int:
    if isinstance(content, str):
        return content.count(image_token)
    if not isinstance(content, list):
        raise SampleError(
            f"content of message {number} must be a string or a list of parts, not {content!r:.80}",
            problem="wrong_type",
        )
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "image") or (kind == "text" and not isinstance(part.get("text"), str)):
            raise SampleError(
                f"message {number} has part {part!r:.80}; "
                "allowed: {'type': 'text', 'text': ...} and {'type': 'image'}",
                problem="wrong_type",
            )
        if kind == "text" and image_token in part["text"]:
            raise SampleError(
                f"a text part of message {number} holds the characters '{image_token}', which the tokenizer "
                "cannot tell from an image; reword it, or use parts of type 'image' for images",
                problem="image_token_in_text",
            )
    return sum(part["type"] == "image" for part in content)


def spell_images(messages: list[Message], template: str, placeholder: str, image_token: str) -> list[Message]:
    """The same messages, images in them as the template reads them: parts, or else its token in place of ours."""
    if placeholder == image_token:
        return messages
    if _READS_PARTS.search(template) is None:
        return [{**message, "content": _replaced(message["content"], placeholder, image_token)} for message in messages]
    keep = _READS_STRINGS.search(template) is not None  # such templates write no line break behind an image
    return [{**message, "content": _as_parts(message["content"], placeholder, keep)} for message in messages]


def _replaced(content: Any, placeholder: str, image_token: str) -> Any:
    return content.replace(placeholder, image_token) if isinstance(content, str) else content


def fit_template(messages: list[Message], template: str, image_token: str) -> list[Message]:
    """The messages in the form that the template reads: unchanged where it reads both strings and parts."""
    if _READS_PARTS.search(template) is None:
        return [{**message, "content": _as_string(message["content"], image_token)} for message in messages]
    if _READS_STRINGS.search(template) is None:
        return [{**message, "content": _as_parts(message["content"], image_token)} for message in messages]
    return messages


def _as_string(content: Any, image_token: str) -> str:
    """Parts as LLaVA writes them: every image on a line of its own."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else f"{image_token}\n" for part in content)


def _as_parts(content: Any, image_token: str, keep_break: bool = False) -> list[dict[str, str]]:
    """The line break after a placeholder belongs to it, as in LLaVA's data; templates write their own."""
    if not isinstance(content, str):
        return content
    first, *rest = content.split(image_token)
    parts = [{"type": "text", "text": first}]
    for text in rest:
        parts += [{"type": "image"}, {"type": "text", "text": text if keep_break else text.removeprefix("\n")}]
    return [part for part in parts if part["type"] == "image" or part["text"]]
