"""What is refused before a weight is made, and the count of FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loongforge.config.errors import UserError
from loongforge.config.schema import ParallelConfig
from loongforge.model.checks import check_model
from loongforge.model.flops import forward_flops, image_tokens, training_factors
from loongforge.parallel.layout import Layout
from tests.support.tiny import tiny_config


def _set(name: str, **values: Any) -> Callable[[Any], None]:
    """Changes a component."""

    def change(model: Any) -> None:
        for key, value in values.items():
            setattr(getattr(model, name), key, value)

    return change


def _over(name: str, **sizes: int) -> Callable[[Any], None]:
    return _set(name, parallel=ParallelConfig(**sizes))


def _both(model: Any) -> None:
    _over("vision", tp=2)(model)
    _set("projector", hidden_size=33)(model)


REFUSED: dict[str, tuple[int, Callable[[Any], Any], str]] = {
    "heads over tp": (8, _over("llm", tp=8), "model.llm.num_heads=4 cannot be divided over parallel.tp=8"),
    "shared heads over tp": (
        6,
        _set("llm", num_heads=24, num_kv_heads=4, parallel=ParallelConfig(tp=6)),
        "model.llm.num_kv_heads=4 cannot be divided over parallel.tp=6, nor be shared by its ranks",
    ),
    "layers over pp": (5, _over("llm", pp=5), "model.llm.num_layers=4 are fewer than the stages of parallel.pp=5"),
    "experts of a dense model": (2, _over("llm", ep=2), "model.llm.parallel.ep=2 divides experts"),
    "encoder's heads over its tp": (
        8,
        _over("vision", tp=8),
        "model.vision.num_heads=4 cannot be divided over parallel.tp=8",
    ),
    "projector gone": (1, lambda model: setattr(model, "projector", None), "model.projector is missing"),
    "vision gone": (1, lambda model: setattr(model, "vision", None), "model.vision is missing"),
    "image too long": (1, _set("llm", max_seq_len=4), "an image takes 4 tokens"),
    "patches": (1, _set("vision", image_size=33), "image_size=33 is not a multiple"),
    "hidden state": (1, _set("vision", feature_layer=-5), "allowed: -3 to -1, or 1 to 3"),
    "inner width": (
        2,
        _set("projector", hidden_size=33, parallel=ParallelConfig(tp=2)),
        "model.projector.hidden_size=33 cannot be divided over parallel.tp=2",
    ),
    "inner width, with the encoder's tp": (
        2,
        _both,
        "model.projector.hidden_size=33 cannot be divided over parallel.tp=2",
    ),
    "batch": (3, lambda model: None, "trainer.global_batch_size=8 cannot be divided"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    world, change, words = REFUSED[name]
    config = tiny_config()
    change(config.model)
    layout = Layout.from_model(config.model, world)
    with pytest.raises(UserError) as caught:
        check_model(config, layout)
    assert words in str(caught.value)


def test_everything_frozen_is_refused() -> None:
    config = tiny_config()
    for part in ("vision", "projector", "llm"):
        getattr(config.model, part).freeze = True
    with pytest.raises(UserError, match="nothing would be learned"):
        check_model(config, Layout.from_model(config.model, 1))


@pytest.mark.parametrize(
    ("world", "llm", "vision"),
    [
        (1, {}, {}),
        (2, dict(tp=2), {}),
        (4, dict(tp=2, pp=2), dict(tp=4)),
        (4, dict(pp=2), dict(dp=4)),
        (3, dict(tp=2), dict(ranks=[2])),
    ],
)
def test_what_fits_passes(world: int, llm: dict[str, Any], vision: dict[str, Any]) -> None:
    config = tiny_config(parallel=ParallelConfig(**llm))
    config.model.vision.parallel = ParallelConfig(**vision)  # type: ignore[union-attr]
    check_model(config, Layout.from_model(config.model, world))


@pytest.mark.parametrize(
    ("frozen", "factors"),
    [
        ((), (3, 3, 3)),
        (("vision",), (1, 3, 3)),
        (("vision", "projector"), (1, 1, 3)),
        (("llm",), (3, 3, 2)),
        (("projector", "llm"), (3, 2, 2)),
    ],
)
def test_factors_of_training(frozen: tuple[str, ...], factors: tuple[int, ...]) -> None:
    """A part that trains hands gradients from layer to layer; a frozen one does so only for what is before it."""
    model = tiny_config().model
    for part in frozen:
        getattr(model, part).freeze = True
    assert training_factors(model) == dict(zip(("vision", "projector", "llm"), factors, strict=True))


def test_flops_of_multi_modal_attention_counted_by_hand() -> None:
    """Each pair of a query and a key that it sees costs two products of a head's width in every head and layer."""
    causal, separate = tiny_config().model, tiny_config(attention="mmca").model
    samples, length, images = 3, 24, 2
    text = length - images * image_tokens(causal)
    pairs = samples * (length * (length + 1) / 2 - text * (text + 1) / 2 - text * (length - text))
    llm: Any = causal.llm
    sizes = dict(tokens=samples * length, images=samples * images, seq_len=length)
    saved = forward_flops(causal, **sizes)["llm"] - forward_flops(separate, **sizes)["llm"]
    assert saved == pytest.approx(2 * 2 * llm.num_layers * llm.num_heads * llm.head_size * pairs)
    without = dict(tokens=72, images=0, seq_len=24)
    assert forward_flops(separate, **without)["llm"] == pytest.approx(forward_flops(causal, **without)["llm"])


def test_flops_of_the_llm_counted_by_hand() -> None:
    """4 layers of width 64: q and o 64 x 64, k and v 64 x 32, three 64 x 96; output layer 64 x 256; causal scores."""
    model = tiny_config().model
    weights = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96) + 64 * 256
    attention = 4 * 2 * 64 * (16 + 1) / 2
    found = forward_flops(model, tokens=10, images=2, seq_len=16)
    assert found["llm"] == 10 * 2 * (weights + attention)
    assert found["projector"] == pytest.approx(2 * 4 * 2 * 2 * 64 * 64, rel=0.02)
    assert image_tokens(model) == 4
    assert training_factors(model)["llm"] == 3
    model.vision.freeze = True  # type: ignore[union-attr]
    assert training_factors(model)["vision"] == 1
