"""From a raw sample to token ids, the mask of what is learned, and pixels."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loongforge.config.errors import UserError
from loongforge.data.chat import GENERATION_HELP, Message, check_roles, count_placeholders, fit_template, marks_answers
from loongforge.data.images import ImageProcessor
from loongforge.data.processed import Encoded, ProcessedSample
from loongforge.data.sample import MAX_SAMPLE_BYTES, RawSample, SampleError, SampleMeta
from loongforge.data.truncation import kept_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from loongforge.components.llm.base import LLMConfig
    from loongforge.components.vision.base import VisionConfig
    from loongforge.config.schema import DataConfig


class SampleProcessor:
    """Turns samples into tokens with a chat template, and images into pixels. Safe to use from several threads."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        image_token: str = "<image>",
        num_image_tokens: int = 0,
        image_processor: ImageProcessor | None = None,
        too_long: Literal["drop", "fail", "truncate_text"] = "fail",
        max_sample_bytes: int = MAX_SAMPLE_BYTES,
    ):
        """Args:

        tokenizer: with a chat template that has `{% generation %}` blocks (raw text needs none).
        max_length: longest sample in tokens, image tokens included.
        image_token: placeholder of an image in messages, and its token.
        num_image_tokens: tokens of one image.
        image_processor: None for a model without vision.
        too_long: `data.too_long`.
        max_sample_bytes: `data.max_sample_bytes`.

        Raises:
            UserError: the image token is not a token.
        """
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.image_token = image_token
        self.num_image_tokens = num_image_tokens
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

    def __call__(self, sample: RawSample, *, only: Collection[int] | None = None) -> ProcessedSample:
        """Processes one sample.

        Args:
            sample: As read.
            only: Images (tiles) that the encoder sees and that are to be decoded, by number; None: all.

        Raises:
            SampleError: this sample cannot be learned from.
            UserError: no sample can, because the chat template does not fit.
        """
        units = self._known_units(sample)
        row = self._encode(sample, units)
        pixels, names = self._pixels(sample, units, only), tuple(document.id for document in sample.documents)
        return ProcessedSample(sample.id, row.ids, row.learned, pixels, row.num_cut, tuple(units), names, row.ends)

    @property
    def is_tiled(self) -> bool:
        """Whether an image's size decides how many tokens it has."""
        return self.image_processor is not None and self.image_processor.max_tiles > 1

    def units(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """Images that the encoder sees of images of these sizes."""
        if self.image_processor is None or not self.is_tiled:
            return [1] * len(sizes)
        return [self.image_processor.units(*size) for size in sizes]

    def _known_units(self, sample: RawSample) -> list[int]:
        """The same of a sample; headers are read where they matter."""
        return self.units(self._sizes(sample) if self.is_tiled else [(0, 0)] * len(sample.images))

    def _sizes(self, sample: RawSample) -> list[tuple[int, int]]:
        images = self.image_processor
        return [images.size(content) for content in self._contents(sample)] if images is not None else []

    def _pixels(self, sample: RawSample, units: Sequence[int], only: Collection[int] | None) -> list[np.ndarray]:
        """Of the wanted images and tiles."""
        if self.image_processor is None:
            return []
        borders, wanted = np.cumsum([0, *units]).tolist(), {}
        for number, (first, end) in enumerate(pairwise(borders)):
            places = [n - first for n in range(first, end) if only is None or n in only]
            if places:
                wanted[number] = places
        found = []
        for places, content in zip(wanted.values(), self._contents(sample, wanted), strict=True):
            tiles = self.image_processor.tiles(content)
            found += [tiles[place] for place in places]
        return found

    def measure(self, sample: RawSample, *, decode: bool = False) -> SampleMeta:
        """What processing a sample would give, from its text and the headers of its images.

        Args:
            sample: as a source hands it out.
            decode: process the images as well, so that every error of `__call__` is found.

        Raises:
            SampleError, UserError: as `__call__`.
        """
        units = self._known_units(sample)
        row = self._encode(sample, units)
        sizes = self._sizes(sample)
        if decode:
            self._pixels(sample, units, None)
        return SampleMeta(int((row.ids != self.image_token_id).sum()), int(row.learned[1:].sum()), tuple(sizes))

    def render_prompt(
        self, messages: list[Message], units: Sequence[int], add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of a conversation to be continued, image tokens expanded.

        Args:
            messages: the conversation so far, ending with the user's message.
            units: tiles of each image given with it (1: it is not cut); as many as there are placeholders.
            add_generation_prompt: end with what precedes an answer.

        Raises:
            SampleError: placeholders and images differ in number, roles out of order, or longer than `max_length`.
        """
        check_roles(messages, ends_with="user" if add_generation_prompt else messages[-1].get("role", ""))
        self._check_images(messages, len(units))
        rendered = self._render(messages, add_generation_prompt=add_generation_prompt)
        ids, _ = self._expand(np.array(rendered["input_ids"], np.int32), None, units)
        self._check_length(len(ids), sum(units))
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

    def _encode(self, sample: RawSample, units: Sequence[int]) -> Encoded:
        """The tokens of a sample, checked."""
        if sample.documents:
            return self._encode_row(sample.documents, units)
        if sample.text is not None:
            ids, learned = self._encode_text(sample.text)
        else:
            ids, learned = self._encode_chat(sample, units)
        ids, learned, num_cut = self._fit(ids, learned, sum(units))
        if not learned[1:].any():
            raise SampleError(
                "it has no label tokens: no answer to learn is left after the chat template", problem="no_label_tokens"
            )
        return Encoded(ids, learned, num_cut)

    def _encode_row(self, documents: Sequence[RawSample], units: Sequence[int]) -> Encoded:
        """Documents one after another; what begins one is not to be predicted from the one before."""
        found, first = [], 0
        for document in documents:
            count = len(document.images)
            try:
                found.append(self._encode(document, units[first : first + count]))
            except SampleError as error:
                raise SampleError(f"sample '{document.id}' in it: {error}", problem=error.problem) from error
            found[-1].learned[0] = False
            first += count
        ids, learned = (np.concatenate([getattr(one, name) for one in found]) for name in ("ids", "learned"))
        ends = np.cumsum([len(one.ids) for one in found]).tolist()
        return Encoded(ids, learned, sum(one.num_cut for one in found), tuple(ends))

    def _fit(self, ids: np.ndarray, learned: np.ndarray, num_images: int) -> tuple[np.ndarray, np.ndarray, int]:
        """What `data.too_long` makes of a sample: (ids, learned, tokens cut)."""
        if len(ids) <= self.max_length or self.too_long != "truncate_text":
            self._check_length(len(ids), num_images)
            return ids, learned, 0
        kept = kept_tokens(ids == self.image_token_id, learned, self.max_length)
        if kept is None:
            raise SampleError(
                f"its text cannot be cut to {self.max_length} tokens: {num_images} images take "
                f"{num_images * self.num_image_tokens} of them, and no answer would be left",
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

    def _encode_chat(self, sample: RawSample, units: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        check_roles(sample.messages, ends_with="assistant")
        self._check_images(sample.messages, len(sample.images))
        template = self.tokenizer.get_chat_template() if self.tokenizer.chat_template else ""
        if template and not marks_answers(template):
            raise UserError(f"the chat template of {self.tokenizer.name_or_path or 'the tokenizer'} {GENERATION_HELP}")
        rendered = self._render(sample.messages, return_assistant_tokens_mask=True)
        learned = np.array(rendered["assistant_masks"], bool)
        return self._expand(np.array(rendered["input_ids"], np.int32), learned, units)

    def _render(self, messages: list[Message], **options: Any) -> Any:
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise UserError(
                f"the tokenizer {self.tokenizer.name_or_path} has no chat template; "
                "give a Jinja file as data.chat_template"
            )
        template = self.tokenizer.get_chat_template()
        fitted = fit_template(messages, template, self.image_token)
        try:
            return self.tokenizer.apply_chat_template(fitted, tokenize=True, return_dict=True, **options)
        except TemplateError as error:
            raise SampleError(f"the chat template refuses it: {error}", problem="template_refuses") from error

    def _expand(
        self, ids: np.ndarray, learned: np.ndarray | None, units: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Makes every image token `num_image_tokens` of them for each tile; images are never targets."""
        is_image = ids == self.image_token_id
        learned = np.zeros(len(ids), bool) if learned is None else learned & ~is_image
        if is_image.sum() != len(units):
            raise UserError(
                f"the chat template writes {is_image.sum()} tokens '{self.image_token}' for {len(units)} images; "
                "set data.image_token to the image token that the template writes"
            )
        if not units:
            return ids, learned
        repeats = np.ones(len(ids), np.int64)
        repeats[is_image] = self.num_image_tokens * np.asarray(units)
        return np.repeat(ids, repeats), np.repeat(learned, repeats)

    def _check_images(self, messages: list[Message], num_images: int) -> None:
        placeholders = count_placeholders(messages, self.image_token)
        if placeholders != num_images:
            raise SampleError(
                f"it has {placeholders} placeholders '{self.image_token}' but {num_images} images",
                problem="image_count",
            )
        if num_images and self.image_processor is None:
            raise SampleError(
                f"it has {num_images} images, but the model has no vision encoder (model.vision)",
                problem="no_vision_encoder",
            )

    def _check_length(self, length: int, num_images: int) -> None:
        if length > self.max_length:
            raise SampleError(
                f"it is {length} tokens long ({num_images * self.num_image_tokens} of them for {num_images} images), "
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


def build_processor(
    data: DataConfig,
    vision: VisionConfig | None,
    llm: LLMConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    num_image_tokens: int | None = None,
) -> SampleProcessor:
    """The processor that a recipe describes.

    Args:
        data: tokenizer, chat template, image token, max_length.
        vision: sizes and normalisation of images; None for a text-only model.
        llm: context and vocabulary.
        tokenizer: in place of loading `data.tokenizer`.
        num_image_tokens: LLM tokens of an image; None: one for each feature vector of the encoder.

    Raises:
        UserError: tokenizer missing, without image token, or larger than the LLM's vocabulary.
    """
    from loongforge.data.tokenizer import load_tokenizer

    tokenizer = tokenizer if tokenizer is not None else load_tokenizer(data.tokenizer, data.chat_template)
    if len(tokenizer) > llm.vocab_size:
        raise UserError(
            f"the tokenizer {data.tokenizer} has {len(tokenizer)} tokens, more than "
            f"model.llm.vocab_size={llm.vocab_size}; set model.llm.vocab_size to at least {len(tokenizer)}"
        )
    if data.max_length is not None and data.max_length > llm.max_seq_len:
        raise UserError(
            f"data.max_length={data.max_length} exceeds the context, model.llm.max_seq_len={llm.max_seq_len}"
        )
    images = None
    if vision is not None and num_image_tokens is None:
        num_image_tokens = vision.num_image_tokens
    if vision is not None:
        images = ImageProcessor(
            *(vision.image_size, vision.image_mean, vision.image_std, vision.image_resize),
            max_tiles=data.max_tiles,
            thumbnail=data.thumbnail,
        )
    return SampleProcessor(
        tokenizer,
        max_length=data.max_length if data.max_length is not None else llm.max_seq_len,
        image_token=data.image_token,
        num_image_tokens=num_image_tokens or 0,
        image_processor=images,
        too_long=data.too_long,
        max_sample_bytes=data.max_sample_bytes,
    )
