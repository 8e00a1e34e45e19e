"""Settings of image processors and tokenizers in a Hugging Face folder, read and written as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loongforge.checkpoint.json_file import read_json
from loongforge.components.vision.base import VisionConfig
from loongforge.config.errors import UserError

BICUBIC = 3
"""`resample`, of Pillow."""


def image_processor_settings(folder: Path) -> dict[str, Any]:
    """The image processor's settings, where transformers 4 or 5 puts them; empty where there are none."""
    nested = _nested(folder, "image_processor")
    if nested is not None:
        return nested
    own = folder / "preprocessor_config.json"
    return read_json(own) if own.is_file() else {}


def video_processor_settings(folder: Path) -> dict[str, Any]:
    """The video processor's, which has the image processor's file where it has none of its own, as in transformers."""
    nested = _nested(folder, "video_processor")
    if nested is not None:
        return nested
    own, shared = folder / "video_preprocessor_config.json", folder / "preprocessor_config.json"
    return next((read_json(file) for file in (own, shared) if file.is_file()), {})


def _nested(folder: Path, section: str) -> dict[str, Any] | None:
    """A section of `processor_config.json`; None: it has none."""
    file = folder / "processor_config.json"
    found = read_json(file) if file.is_file() else {}
    if section not in found:
        return None
    if not isinstance(found[section], dict):
        raise UserError(f"{file}: {section}={found[section]!r:.60} holds no settings")
    return dict(found[section])


_SECTION = {"preprocessor_config.json": "image", "video_preprocessor_config.json": "video"}


def with_sections(
    file: str, theirs: dict[str, Any], changes: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]
) -> dict[str, Any]:
    """A processor's file with changes of its sections, whichever way transformers 4 or 5 keeps them.

    Args:
        file: Its name.
        theirs: Its content.
        changes: Of `image` and `video` settings; each gives back what it got where nothing changes.
    """
    if file in _SECTION:
        change = changes.get(_SECTION[file])
        return theirs if change is None else change(theirs)
    found = theirs
    for kind, change in changes.items():
        own = theirs.get(f"{kind}_processor")
        if isinstance(own, dict) and (changed := change(own)) is not own:
            found = {**found, f"{kind}_processor": changed}
    return found


def image_settings(folder: Path) -> dict[str, Any]:
    """Keys of a fixed-resolution encoder's recipe: mean, deviation, and how an image gets its size.

    Raises:
        UserError: a processing that is not covered.
    """
    found = image_processor_settings(folder)
    if not found:
        return {}
    require_setting(found, folder, "resample", BICUBIC)
    require_setting(found, folder, "do_resize", True)
    require_setting(found, folder, "do_normalize", True)
    keys = {f"image_{key}": list(found[f"image_{key}"]) for key in ("mean", "std") if f"image_{key}" in found}
    size = found.get("size", {})
    crops = isinstance(size, int) or "shortest_edge" in size
    return {**keys, "image_resize": "crop" if crops else "stretch"}


def require_setting(found: Mapping[str, Any], folder: Path, key: str, value: Any, *, kind: str = "image") -> None:
    """A setting of the `kind` processor has a value, or is not there.

    Raises:
        UserError: it has another value, which is not covered.
    """
    if found.get(key, value) != value:
        raise UserError(f"{folder}: the {kind} processor has {key}={found[key]!r}; covered: {value!r}")


def common_settings(vision: VisionConfig) -> dict[str, Any]:
    """What the processors of all families are told: every step is taken, with the encoder's mean and deviation."""
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": BICUBIC,
        "rescale_factor": 1 / 255,
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
    }


def clip_image_processor(vision: VisionConfig) -> dict[str, Any]:
    """`preprocessor_config.json` of a fixed-resolution encoder: CLIP's processing, or SigLIP's."""
    edge = vision.image_size
    common = common_settings(vision)
    whole = {"height": edge, "width": edge}
    if vision.image_resize == "stretch":
        return {"image_processor_type": "SiglipImageProcessor", "size": whole, **common}
    crop = {"size": {"shortest_edge": edge}, "crop_size": whole, "do_center_crop": True}
    return {"image_processor_type": "CLIPImageProcessor", **crop, **common}


def token_text(folder: Path, token_id: int) -> str:
    """The text of a special token.

    Raises:
        UserError: the folder's tokenizer has no token of that id.
    """
    for token in _added_tokens(folder):
        if token[0] == token_id:
            return token[1]
    raise UserError(f"{folder}: its tokenizer has no added token {token_id}, the image token of config.json")


def _added_tokens(folder: Path) -> list[tuple[int, str]]:
    fast, slow = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if fast.is_file():
        return [(token["id"], token["content"]) for token in read_json(fast).get("added_tokens", [])]
    decoder = read_json(slow).get("added_tokens_decoder", {}) if slow.is_file() else {}
    return [(int(number), token["content"]) for number, token in decoder.items()]
