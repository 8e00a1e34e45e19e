"""What can be wrong with a sample that a run would take."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from loongforge.data.processed import ProcessedSample
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import RawSample
from loongforge.data.video import is_video, split_frames

Finding = tuple[str, str]
"""Kind and reason."""

MAX_ASPECT = 8
"""Longer edge over shorter: of a more extreme image, a centre crop shows less than this part."""

_OMITTED = re.compile(r"[\s\[(<]*(\.\.+|…|truncated|omitted)[\s.…\])>]*", re.IGNORECASE)
_FOREIGN = re.compile(
    r"<(?:img|image(?:[_ ]?\d+)?|im_patch|image_placeholder|imagehere|video|audio)>"
    r"|<\|(?:image|image_pad|image_\d+|video_pad|vision_start)\|>|\[img\]",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_LEAST_QUESTION = 4  # characters; "yes" may stand in an answer by chance


class ContentRules:
    """Looks at the text, the rendering and the images of processed samples."""

    def __init__(self, processor: SampleProcessor):
        self._processor = processor
        tokenizer = processor.tokenizer
        added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        known = {token for token in [*added, *tokenizer.all_special_tokens] if token.strip()}
        self._special = sorted(known - {processor.image_token})

    def findings(self, raw: RawSample, done: ProcessedSample) -> Iterator[Finding]:
        """All that is wrong, or worth a look."""
        if done.num_cut:
            yield "cut_text", f"{done.num_cut} of its tokens are cut, to {len(done.ids)}"
        if raw.text is not None:
            if not raw.text.strip():
                yield "empty_text", "its text is nothing but blanks"
            yield from self._characters("its text", [raw.text])
            return
        for number, message in enumerate(raw.messages):
            yield from self._message(number, message)
        if not done.num_cut:
            yield from self._rendering(raw.messages, done)

    def _message(self, number: int, message: dict[str, Any]) -> Iterator[Finding]:
        texts, role = self._texts(message["content"]), message["role"]
        everything = "".join(texts)
        if role == "assistant" and not everything.strip():
            yield "empty_answer", f"the answer in message {number} has no text: {everything!r:.80}"
        elif role == "assistant" and _OMITTED.fullmatch(everything):
            yield "truncated_answer", f"the answer in message {number} is only {everything!r:.80}"
        elif role == "user" and not everything.strip() and len(texts) == 1:
            yield "empty_question", f"the question in message {number} has neither text nor image"
        yield from self._characters(f"message {number}", texts)

    def _texts(self, content: Any) -> list[str]:
        """The text between images: one more than there are images. A special token beside an image belongs to it."""
        if isinstance(content, list):
            texts = [""]
            for part in content:
                if part["type"] == "image":
                    texts.append("")
                else:
                    texts[-1] += part["text"]
            return texts
        first, *rest = content.split(self._processor.placeholder)
        texts = [first, *(self._without(text, str.removeprefix) for text in rest)]
        return [*(self._without(text, str.removesuffix) for text in texts[:-1]), texts[-1]]

    def _without(self, text: str, remove: Any) -> str:
        for token in self._special:
            shorter: str = remove(text, token)
            if shorter != text:
                return shorter
        return text

    def _characters(self, where: str, texts: Sequence[str]) -> Iterator[Finding]:
        text = "\n".join(texts)
        for token in self._special:
            if token in text:
                yield "special_token_in_text", f"{where} holds '{token}', which becomes a special token"
                break
        foreign = _FOREIGN.search(text)
        if foreign and foreign[0] != self._processor.placeholder and foreign[0] not in self._special:
            yield (
                "foreign_placeholder",
                f"{where} holds '{foreign[0]}', but the placeholder is '{self._processor.placeholder}'",
            )
        if "\ufffd" in text:
            yield "replacement_character", f"{where} holds U+FFFD after {_before(text, text.index(chr(0xFFFD)))!r}"
        control = _CONTROL.search(text)
        if control:
            yield "control_character", f"{where} holds {control[0]!r} after {_before(text, control.start())!r}"

    def _rendering(self, messages: list[dict[str, Any]], done: ProcessedSample) -> Iterator[Finding]:
        """Whether what is said is in the tokens, and the answers in what is learned. Blanks are not compared."""
        decode = self._processor.decode
        shown = _squeezed(decode(done.ids[done.ids != self._processor.image_token_id].tolist()))
        learned = _squeezed(decode(done.ids[done.learned].tolist()))
        texts = [[self._spoken(text) for text in self._texts(message["content"])] for message in messages]
        answers = [text for i, part in enumerate(texts) if messages[i]["role"] == "assistant" for text in part]
        for number, (message, parts) in enumerate(zip(messages, texts, strict=True)):
            if message["role"] == "assistant":
                if not all(part in learned for part in parts):
                    last = number == len(messages) - 1
                    kind = "answer_not_learned" if last else "earlier_answer_not_learned"
                    yield kind, f"the answer in message {number} is not wholly among the learned tokens"
            elif not all(part in shown for part in parts):
                kind = "template_drops_system" if message["role"] == "system" else "template_drops_text"
                yield kind, f"message {number} is not wholly in the rendered conversation"
            elif any(self._is_learned(part, learned, answers) for part in parts):
                yield "question_learned", f"message {number}, of role '{message['role']}', is among the learned tokens"

    def _is_learned(self, text: str, learned: str, answers: list[str]) -> bool:
        return len(text) >= _LEAST_QUESTION and text in learned and not any(text in answer for answer in answers)

    def _spoken(self, text: str) -> str:
        """A text as the tokenizer gives it back: some change case or spelling."""
        ids = self._processor.tokenizer.encode(text, add_special_tokens=False)
        return _squeezed(self._processor.decode(ids))


def image_findings(content: bytes, number: int) -> Iterator[Finding]:
    """What is worth a look in an encoded image that can be decoded; a video's first frame stands for all."""
    if is_video(content):
        content = split_frames(content)[0][0]
    with Image.open(io.BytesIO(content)) as image:
        (width, height), mode, frames = image.size, image.mode, getattr(image, "n_frames", 1)
    name = f"image {number}"
    if max(width, height) > MAX_ASPECT * min(width, height):
        yield "aspect_ratio", f"{name} has {width} x {height} pixels"
    if max(width, height) <= 2:
        yield "tiny_image", f"{name} has {width} x {height} pixels"
    if mode.startswith(("I", "F")):
        yield "clipped_depth", f"{name} has pixels of mode {mode}, which are clipped to 8 bits; convert it before"
    if frames > 1:
        yield "several_frames", f"{name} has {frames} frames"


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _before(text: str, position: int) -> str:
    return text[max(0, position - 20) : position]
