"""From a recipe to the processor of its samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loongforge.config.errors import UserError
from loongforge.data.any_resolution import AnyResolutionImageProcessor
from loongforge.data.any_size import AnySizeImageProcessor
from loongforge.data.images import ImageProcessor
from loongforge.data.processing import SampleProcessor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from loongforge.components.llm.base import LLMConfig
    from loongforge.components.projector.base import ProjectorConfig
    from loongforge.components.vision.base import VisionConfig
    from loongforge.config.schema import DataConfig


def build_processor(
    data: DataConfig,
    vision: VisionConfig | None,
    llm: LLMConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    projector: ProjectorConfig | None = None,
) -> SampleProcessor:
    """The processor that a recipe describes.

    Args:
        data: tokenizer, chat template, image token, max_length.
        vision: sizes and normalisation of images; None for a text-only model.
        llm: context and vocabulary.
        tokenizer: in place of loading `data.tokenizer`.
        projector: says how many LLM tokens an image has; None: one for each feature vector of the encoder.

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
    tokens = 0
    if vision is not None:
        tokens = vision.num_image_tokens if projector is None else projector.num_tokens(vision.num_image_tokens)
    return SampleProcessor(
        tokenizer,
        max_length=data.max_length if data.max_length is not None else llm.max_seq_len,
        image_token=data.image_token,
        placeholder=data.placeholder,
        image_ends=(data.image_begin or "", data.image_end or ""),
        num_image_tokens=tokens,
        num_patches=vision.num_patches if vision is not None else 1,
        image_processor=_image_processor(data, vision, projector),
        too_long=data.too_long,
        max_sample_bytes=data.max_sample_bytes,
    )


def _image_processor(
    data: DataConfig, vision: VisionConfig | None, projector: ProjectorConfig | None
) -> ImageProcessor | None:
    if vision is None:
        return None
    if vision.any_size:
        assert projector is not None
        return AnySizeImageProcessor(vision, projector)  # type: ignore[arg-type]
    if projector is not None and projector.cuts_images:
        return AnyResolutionImageProcessor(vision, projector)  # type: ignore[arg-type]
    return ImageProcessor(
        *(vision.image_size, vision.image_mean, vision.image_std, vision.image_resize),
        max_tiles=data.max_tiles,
        thumbnail=data.thumbnail,
    )
