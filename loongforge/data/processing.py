"""From a raw sample to token ids, the mask of what is learned, and pixels."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loongforge.config.errors import UserError
from loongforge.data.chat import (
    GENERATION_HELP,
    Message,
    check_roles,
    count_placeholders,
    fit_template,
    marks_answers,
    refuse_in_text,
    spell_images,
)
from loongforge.data.images import ImageProcessor
from loongforge.data.processed import Encoded, ProcessedSample, Tiles, num_tokens
from loongforge.data.sample import MAX_SAMPLE_BYTES, RawSample, SampleError, SampleMeta
from loongforge.data.truncation import kept_tokens
from loongforge.parallel.images import ImageShape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SampleProcessor:
    """Turns samples into tokens with a chat template, and images into pixels. Safe to use from several threads."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        image_token: str = "<image>",
        placeholder: str | None = None,
        image_ends: tuple[str, str] = ("", ""),
        num_image_tokens: int = 0,
        num_patches: int = 1,
        image_processor: ImageProcessor | None = None,
        too_long: Literal["drop", "fail", "truncate_text"] = "fail",
        max_sample_bytes: int = MAX_SAMPLE_BYTES,
    ):
        """Args:

        tokenizer: with a chat template that has `{% generation %}` blocks (raw text needs none).
        max_length: longest sample in tokens, image tokens included.
        image_token: stands for one row of an image.
        placeholder: stands for an image in the text of messages; None: the image token.
        image_ends: text before and after the tokens of an image.
        num_image_tokens: tokens of one image, where all images have as many.
        num_patches: its patches.
        image_processor: None for a model without vision.
        too_long: `data.too_long`.
        max_sample_bytes: `data.max_sample_bytes`.

        Raises:
            UserError: the image token is not a token.
        """
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.image_token = image_token
        self.placeholder = placeholder or image_token
        self.image_ends: list[list[int]] = [tokenizer.encode(end, add_special_tokens=False) for end in image_ends]
        self.num_image_tokens = num_image_tokens
        self._tile = ImageShape(1, num_patches, num_patches, num_image_tokens)
        self.image_processor = image_processor
        self.too_long = too_long
        self.max_sample_bytes = max_sample_bytes
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.image_token_id = _image_token_id(tokenizer, image_token) if image_processor is not None else -1

    def normalise(self, pixels: list[np.ndarray]) -> np.ndarray:
        """float32 `[N, 3, H, W]` of N processed images; `[0, 3, 0, 0]` without vision."""
        if self.image_processor is None:
            return np.zeros((0, 3, 0, 0), np.float32)
        return self.image_processor.normalise(pixels)

    def __call__(
        self, sample: RawSample, *, only: Collection[int] | None = None, encoded: Encoded | None = None
    ) -> ProcessedSample:
        """Processes one sample.

        Args:
            sample: As read.
            only: Images (tiles) that the encoder sees and that are to be decoded, by number; None: all.
            encoded: Its tokens, from `encode`; None: they are found.

        Raises:
            SampleError: this sample cannot be learned from.
            UserError: no sample can, because the chat template does not fit.
        """
        row = encoded if encoded is not None else self.encode(sample)
        pixels, names = self._pixels(sample, row.images, only), tuple(document.id for document in sample.documents)
        return ProcessedSample(sample.id, row.ids, row.learned, pixels, row.num_cut, row.images, names, row.ends)

    def encode(self, sample: RawSample) -> Encoded:
        """Its tokens.

        Raises:
            SampleError, UserError: as `__call__`, but for images.
        """
        images = self._known_images(sample)
        return replace(self._encode(sample, images), images=tuple(images))

    @property
    def any_size(self) -> bool:
        """Whether what the encoder sees differs in size from image to image."""
        return self.image_processor is not None and self.image_processor.any_size

    @property
    def _reads_sizes(self) -> bool:
        """Whether an image's size decides how many tokens it has."""
        return self.any_size or (self.image_processor is not None and self.image_processor.max_tiles > 1)

    def images(self, sizes: Sequence[tuple[int, ...]]) -> list[Tiles]:
        """What images of these sizes become.

        Raises:
            SampleError: the encoder does not take an image of such a size.
        """
        if self.image_processor is None or not self._reads_sizes:
            return [(self._tile,)] * len(sizes)
        return [self.image_processor.shapes(size, self._tile) for size in sizes]

    def read_image(self, content: bytes) -> tuple[Tiles, list[np.ndarray]]:
        """What an encoded image becomes, and its pixels, for `normalise`.

        Raises:
            SampleError: it cannot be decoded, or the model takes no images.
        """
        if self.image_processor is None:
            raise SampleError("the model has no vision encoder (model.vision)", problem="no_vision_encoder")
        size = self.image_processor.size(content) if self._reads_sizes else (0, 0)
        return self.images([size])[0], self.image_processor.tiles(content)

    def _known_images(self, sample: RawSample) -> list[Tiles]:
        """What the images of a sample become; headers are read where they matter."""
        return self.images(self._sizes(sample) if self._reads_sizes else [(0, 0)] * len(sample.images))

    def _sizes(self, sample: RawSample) -> list[tuple[int, ...]]:
        images = self.image_processor
        return [images.size(content) for content in self._contents(sample)] if images is not None else []

    def _pixels(self, sample: RawSample, images: Sequence[Tiles], only: Collection[int] | None) -> list[np.ndarray]:
        """Of the wanted images and tiles."""
        if self.image_processor is None:
            return []
        borders, wanted = np.cumsum([0, *map(len, images)]).tolist(), {}
        for number, (first, end) in enumerate(pairwise(borders)):
            places = [n - first for n in range(first, end) if only is None or n in only]
            if places:
                wanted[number] = places
        found = []
        for places, content in zip(wanted.values(), self._contents(sample, wanted), strict=True):
            tiles = self.image_processor.tiles(content)
            found += [tiles[place] for place in places]
        return found

    def measure(self, sample: RawSample, *, decode: bool = False, encoded: Encoded | None = None) -> SampleMeta:
        """What processing a sample would give, from its text and the headers of its images.

        Args:
            sample: as a source hands it out.
            decode: process the images as well, so that every error of `__call__` is found.
            encoded: as for `__call__`.

        Raises:
            SampleError, UserError: as `__call__`.
        """
        row = encoded if encoded is not None else self.encode(sample)
        sizes = self._sizes(sample)
        if decode:
            self._pixels(sample, row.images, None)
        return SampleMeta(int((row.ids != self.image_token_id).sum()), int(row.learned[1:].sum()), tuple(sizes))

    def render_prompt(
        self, messages: list[Message], images: Sequence[Tiles], add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of a conversation to be continued, image tokens expanded.

        Args:
            messages: the conversation so far, ending with the user's message.
            images: what each image given with it becomes (`read_image`); as many as there are placeholders.
            add_generation_prompt: end with what precedes an answer.

        Raises:
            SampleError: placeholders and images differ in number, roles out of order, or longer than `max_length`.
        """
        check_roles(messages, ends_with="user" if add_generation_prompt else messages[-1].get("role", ""))
        self._check_images(messages, len(images))
        rendered = self._render(messages, add_generation_prompt=add_generation_prompt)
        ids, _ = self._expand(np.array(rendered["input_ids"], np.int32), None, images)
        self._check_length(len(ids), images)
        return ids.tolist()

    def message_starts(self, messages: list[Message]) -> list[int]:
        """Where each message begins, in tokens before images are expanded.

        Found by rendering the conversation up to each message: a message begins where the two part, which may be a
        token that holds the end of the one before. Empty where the template does not render piece by piece.
        """
        whole = list(self._render(messages)["input_ids"])
        starts = [0]
        for number in range(1, len(messages)):
            try:
                before = list(self._render(messages[:number])["input_ids"])
            except SampleError:
                return []
            same = next((i for i, (a, b) in enumerate(zip(whole, before, strict=False)) if a != b), len(before))
            if same < max(starts[-1], len(before) - 2):
                return []
            starts.append(same)
        return starts

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        text = self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        assert isinstance(text, str)
        return text

    def _contents(self, sample: RawSample, only: Collection[int] | None = None) -> Iterator[bytes]:
        """The encoded images, one at a time."""
        total, most = 0, self.max_sample_bytes * max(1, len(sample.documents))
        for number, read in enumerate(sample.images):
            if only is not None and number not in only:
                continue
            content = read()
            total += len(content)
            if total > most:
                raise SampleError(
                    f"its images have more than data.max_sample_bytes={self.max_sample_bytes} together",
                    problem="too_many_bytes",
                )
            yield content

    def _encode(self, sample: RawSample, images: Sequence[Tiles]) -> Encoded:
        """The tokens of a sample, checked."""
        if sample.documents:
            return self._encode_row(sample.documents, images)
        if sample.text is not None:
            ids, learned = self._encode_text(sample.text)
        else:
            ids, learned = self._encode_chat(sample, images)
        ids, learned, num_cut = self._fit(ids, learned, images)
        if not learned[1:].any():
            raise SampleError(
                "it has no label tokens: no answer to learn is left after the chat template", problem="no_label_tokens"
            )
        return Encoded(ids, learned, num_cut)

    def _encode_row(self, documents: Sequence[RawSample], images: Sequence[Tiles]) -> Encoded:
        """Documents one after another; what begins one is not to be predicted from the one before."""
        found, first = [], 0
        for document in documents:
            count = len(document.images)
            try:
                found.append(self._encode(document, images[first : first + count]))
            except SampleError as error:
                raise SampleError(f"sample '{document.id}' in it: {error}", problem=error.problem) from error
            found[-1].learned[0] = False
            first += count
        ids, learned = (np.concatenate([getattr(one, name) for one in found]) for name in ("ids", "learned"))
        ends = np.cumsum([len(one.ids) for one in found]).tolist()
        return Encoded(ids, learned, sum(one.num_cut for one in found), tuple(ends))

    def _fit(self, ids: np.ndarray, learned: np.ndarray, images: Sequence[Tiles]) -> tuple[np.ndarray, np.ndarray, int]:
        """What `data.too_long` makes of a sample: (ids, learned, tokens cut)."""
        if len(ids) <= self.max_length or self.too_long != "truncate_text":
            self._check_length(len(ids), images)
            return ids, learned, 0
        held = np.isin(ids, [self.image_token_id, *itertools.chain(*self.image_ends)])
        kept = kept_tokens(held, learned, self.max_length)
        if kept is None:
            raise SampleError(
                f"its text cannot be cut to {self.max_length} tokens: {sum(map(len, images))} images take "
                f"{sum(map(num_tokens, images))} of them, and no answer would be left",
                problem="too_long",
            )
        return ids[kept], learned[kept], len(ids) - len(kept)

    def _encode_text(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Raw text between begin and end token; every token is learned (the first has nothing to follow from)."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        array = np.array([*bos, *ids, self.eos_id], np.int32)
        if self.image_token_id in ids:
            raise SampleError(
                f"its text holds the characters '{self.image_token}', which stand for an image",
                problem="image_token_in_text",
            )
        return array, np.ones(len(array), bool) if text else np.zeros(len(array), bool)

    def _encode_chat(self, sample: RawSample, images: Sequence[Tiles]) -> tuple[np.ndarray, np.ndarray]:
        check_roles(sample.messages, ends_with="assistant")
        self._check_images(sample.messages, len(sample.images))
        template = self.tokenizer.get_chat_template() if self.tokenizer.chat_template else ""
        if template and not marks_answers(template):
            raise UserError(f"the chat template of {self.tokenizer.name_or_path or 'the tokenizer'} {GENERATION_HELP}")
        rendered = self._render(sample.messages, return_assistant_tokens_mask=True)
        learned = np.array(rendered["assistant_masks"], bool)
        return self._expand(np.array(rendered["input_ids"], np.int32), learned, images)

    def _render(self, messages: list[Message], **options: Any) -> Any:
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise UserError(
                f"the tokenizer {self.tokenizer.name_or_path} has no chat template; "
                "give a Jinja file as data.chat_template"
            )
        template = self.tokenizer.get_chat_template()
        spelled = spell_images(messages, template, self.placeholder, self.image_token)
        fitted = fit_template(spelled, template, self.image_token)
        try:
            return self.tokenizer.apply_chat_template(fitted, tokenize=True, return_dict=True, **options)
        except TemplateError as error:
            raise SampleError(f"the chat template refuses it: {error}", problem="template_refuses") from error

    def _expand(
        self, ids: np.ndarray, learned: np.ndarray | None, images: Sequence[Tiles]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Makes every image token as many of them as its image takes, between its ends; these are never targets."""
        is_image = ids == self.image_token_id
        learned = np.zeros(len(ids), bool) if learned is None else learned & ~is_image
        if is_image.sum() != len(images):
            raise UserError(
                f"the chat template writes {is_image.sum()} tokens '{self.image_token}' for {len(images)} images; "
                "set data.image_token to the image token that the template writes"
            )
        if not images:
            return ids, learned
        repeats = np.ones(len(ids), np.int64)
        begin, end = self.image_ends
        repeats[is_image] = [len(begin) + num_tokens(tiles) + len(end) for tiles in images]
        expanded = np.repeat(ids, repeats)
        for stop, size in zip(repeats.cumsum()[is_image], repeats[is_image], strict=True):
            expanded[stop - size : stop - size + len(begin)] = begin
            expanded[stop - len(end) : stop] = end
        return expanded, np.repeat(learned, repeats)

    def _check_images(self, messages: list[Message], num_images: int) -> None:
        placeholders = count_placeholders(messages, self.placeholder)
        if self.placeholder != self.image_token:
            refuse_in_text(messages, self.image_token)
        if placeholders != num_images:
            raise SampleError(
                f"it has {placeholders} placeholders '{self.placeholder}' but {num_images} images",
                problem="image_count",
            )
        if num_images and self.image_processor is None:
            raise SampleError(
                f"it has {num_images} images, but the model has no vision encoder (model.vision)",
                problem="no_vision_encoder",
            )

    def _check_length(self, length: int, images: Sequence[Tiles]) -> None:
        if length > self.max_length:
            taken, number = sum(map(num_tokens, images)), sum(map(len, images))
            raise SampleError(
                f"it is {length} tokens long ({taken} of them for {number} images), "
                f"longer than {self.max_length} (data.max_length, or the LLM's max_seq_len); data.too_long says "
                "what becomes of such samples",
                problem="too_long",
                drop=self.too_long == "drop",
            )


def _image_token_id(tokenizer: PreTrainedTokenizerBase, image_token: str) -> int:
    ids = tokenizer.encode(image_token, add_special_tokens=False) if image_token else []
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise UserError(
            f"data.image_token='{image_token}' is not one token of the tokenizer {tokenizer.name_or_path} "
            f"(it becomes {ids}); name the tokenizer's image token, or add one to the tokenizer as a special token"
        )
    return ids[0]
