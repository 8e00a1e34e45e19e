"""Image and video processors of Qwen2-VL and Qwen2.5-VL: their files, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loongforge.checkpoint.families.processor_files import (
    BICUBIC,
    common_settings,
    image_processor_settings,
    require_setting,
    video_processor_settings,
    with_sections,
)
from loongforge.components.vision.qwen_vl.config import QwenViTConfig

# of transformers, where a file says nothing
_IMAGE_LIMITS = 56 * 56, 28 * 28 * 1280
_VIDEO_LIMITS = 128 * 28 * 28, 768 * 28 * 28


def processor_settings(folder: Path, vision: QwenViTConfig) -> dict[str, Any]:
    """Keys of the encoder's recipe that the processors' files have.

    Raises:
        UserError: a processing that is not covered.
    """
    found, video = image_processor_settings(folder), video_processor_settings(folder)
    same = {"patch_size": vision.patch_size, "merge_size": vision.merge_size}
    same["temporal_patch_size"] = vision.temporal_patch_size
    for kind, settings in (("image", found), ("video", video)):
        for key, value in {**same, "resample": BICUBIC, "do_resize": True, "do_normalize": True}.items():
            require_setting(settings, folder, key, value, kind=kind)
    keys: dict[str, Any] = {key: list(found[key]) for key in ("image_mean", "image_std") if key in found}
    least, most = _limits(found, _IMAGE_LIMITS)
    least_video, most_video = _limits(video, _VIDEO_LIMITS)
    limits = {"min_pixels": least, "max_pixels": most, "min_video_pixels": least_video, "max_video_pixels": most_video}
    return {**keys, **limits}


def _limits(settings: Mapping[str, Any], defaults: tuple[int, int]) -> tuple[int, int]:
    """Pixels at least and at most; keys of their own come before those in `size`, as in transformers."""
    size = settings.get("size")
    named = size if isinstance(size, dict) else {}
    found = []
    for key, edge, default in zip(
        ("min_pixels", "max_pixels"), ("shortest_edge", "longest_edge"), defaults, strict=True
    ):
        values = (settings.get(key), named.get(edge), named.get(key), default)
        found.append(int(next(value for value in values if value is not None)))
    return found[0], found[1]


def with_limits(file: str, theirs: dict[str, Any], vision: QwenViTConfig) -> dict[str, Any]:
    """A processor's file with the recipe's limits; the same object where it has them."""

    def change(found: dict[str, Any], limits: tuple[int, int], defaults: tuple[int, int]) -> dict[str, Any]:
        if _limits(found, defaults) == limits:
            return found
        size = {"shortest_edge": limits[0], "longest_edge": limits[1]}
        keys = dict(zip(("min_pixels", "max_pixels"), limits, strict=True))
        return {**found, "size": size, **{key: value for key, value in keys.items() if key in found}}

    images, videos = _recipe_limits(vision)
    changes = {
        "image": lambda found: change(found, images, _IMAGE_LIMITS),
        "video": lambda found: change(found, videos, _VIDEO_LIMITS),
    }
    return with_sections(file, theirs, changes)


def _recipe_limits(vision: QwenViTConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    return (vision.min_pixels, vision.max_pixels), (vision.min_video_pixels, vision.max_video_pixels)


def processor_files(vision: QwenViTConfig, processor_class: str) -> dict[str, Any]:
    """The files, by name."""
    common = {
        **common_settings(vision),
        "patch_size": vision.patch_size,
        "merge_size": vision.merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    sizes = [{"size": {"shortest_edge": least, "longest_edge": most}} for least, most in _recipe_limits(vision)]
    images = {"image_processor_type": "Qwen2VLImageProcessor", **common, **sizes[0]}
    videos = {"video_processor_type": "Qwen2VLVideoProcessor", **common, **sizes[1]}
    processor = {"processor_class": processor_class}
    return {
        "preprocessor_config.json": {**images, **processor},
        "video_preprocessor_config.json": {**videos, **processor},
        "processor_config.json": {**processor, "image_processor": images, "video_processor": videos},
    }
