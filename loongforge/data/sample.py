"""A sample as a source hands it out, before any processing, and the error that names one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_SAMPLE_BYTES = 256 << 20
"""Default of `data.max_sample_bytes`."""


class SampleError(ValueError):
    """This one sample cannot be learned from. The message says why; the caller knows which sample it is."""

    def __init__(self, message: str, *, problem: str = "invalid_sample", drop: bool = False):
        """Args:

        message: why.
        problem: what kind of problem it is, for counting (`loongforge.data.check.kinds`).
        drop: the recipe leaves such samples out, whatever it does with bad ones (`data.too_long: drop`).
        """
        super().__init__(message)
        self.problem = problem
        self.drop = drop


@dataclass(frozen=True)
class Location:
    """Where a sample lies, in words for messages and for quarantine.jsonl."""

    source: str
    """Path or pattern of the source, as the recipe gives it."""
    shard: str
    """The file that holds the sample."""
    key: str
    """Key in a shard, or `line 7` / `entry 7` of a file."""

    def __str__(self) -> str:
        return f"{self.key} of {self.shard}"


@dataclass(frozen=True)
class RawSample:
    """A conversation with encoded images, or a raw text."""

    id: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    """Chat messages `{"role", "content"}`; content is a string with placeholders or a list of parts."""
    images: Sequence[Callable[[], bytes]] = ()
    """Readers of the encoded images (PNG, JPEG, ...) and videos (`loongforge.data.video`), in order."""
    text: str | None = None
    """A raw text to learn whole, in place of messages."""
    has_own_id: bool = True
    """Whether the record gives `id`; else it is made from where the sample lies."""
    documents: Sequence[RawSample] = ()
    """Samples that lie in a packed row, in place of messages and text; `images` are those of all of them, in order."""


@dataclass(frozen=True)
class SampleMeta:
    """What a plan needs to know of a sample, without its pixels."""

    text_tokens: int
    """Tokens of the processed sample, all but those of images; 0 where there is a problem."""
    label_tokens: int
    """Positions that have a loss."""
    image_sizes: tuple[tuple[int, ...], ...] = ()
    """(width, height) of each image in pixels, turned upright, before it is resized; of a video (width, height, frames,
    frames in 1000 seconds)."""
    problem: str | None = None
    """Why the sample cannot be learned from."""


TEXT_WITH_IMAGES = (
    "it is a raw text with images, which no place in the text shows; use 'messages' with a placeholder for each image"
)
"""Said of samples whose images would be left out without a word."""

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""What LLaVA, ShareGPT and OpenAI call the roles."""


def messages_of(record: dict[str, Any], num_images: int = 0) -> list[dict[str, Any]]:
    """The chat messages of a record.

    Args:
        record: with `messages` (transformers, OpenAI), `conversations` (LLaVA, ShareGPT; a `system` text may stand
            beside them), or `texts` (pairs of `user` and `assistant` about images that come first).
        num_images: images of the sample, for `texts`.

    Raises:
        SampleError: none of these is there, or it is not a list of messages.
    """
    if "messages" in record:
        return [_openai(i, m) for i, m in enumerate(_checked(record["messages"], "messages", "role", "content"))]
    if "conversations" in record:
        turns = _checked(record["conversations"], "conversations", "from", "value")
        messages = [{"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"]} for turn in turns]
        system = record.get("system")
        return [{"role": "system", "content": system}, *messages] if system else messages
    if "texts" in record:
        return _pairs(_checked(record["texts"], "texts", "user", "assistant"), num_images)
    raise SampleError(
        f"it has none of 'messages', 'conversations', 'text'; its keys are {sorted(record)}", problem="no_messages"
    )


def _openai(number: int, message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "assistant" and message.get("weight", 1) != 1:
        raise SampleError(
            f"messages[{number}] has weight {message['weight']!r}; every answer is learned with weight 1, so take the "
            "answers that must not be learned out",
            problem="wrong_type",
        )
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _pairs(turns: list[dict[str, Any]], num_images: int) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for turn in turns:
        messages += [{"role": role, "content": turn[role]} for role in ("user", "assistant")]
    images = [{"type": "image"}] * num_images
    messages[0]["content"] = [*images, {"type": "text", "text": messages[0]["content"]}]
    return messages


def _checked(turns: Any, name: str, role: str, content: str) -> list[dict[str, Any]]:
    if not isinstance(turns, list) or not turns:
        raise SampleError(f"'{name}' must be a list with at least one message, not {turns!r:.80}", problem="wrong_type")
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get(role), str) or content not in turn:
            raise SampleError(
                f"{name}[{i}] must be an object with '{role}' and '{content}', not {turn!r:.80}", problem="wrong_type"
            )
    return turns


def id_of(record: dict[str, Any], default: str) -> tuple[str, bool]:
    """(id of a record, whether it is its own)."""
    name = record.get("id")
    if name is None:
        return default, False
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        raise SampleError(f"'id' must be a string or a number, not {name!r:.80}", problem="wrong_type")
    return str(name), True


def text_of(record: dict[str, Any]) -> str | None:
    """The raw text of a text sample; None for a conversation."""
    if "text" not in record or any(key in record for key in ("messages", "conversations", "texts")):
        return None
    if not isinstance(record["text"], str):
        raise SampleError(f"'text' must be a string, not {record['text']!r:.80}", problem="wrong_type")
    return record["text"]
