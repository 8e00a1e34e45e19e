"""All layouts of a few ranks that the schema accepts, found by asking it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from loongforge.config.errors import UserError
from loongforge.config.schema import Config, ParallelConfig
from loongforge.model.checks import check_model
from loongforge.parallel.layout import Layout
from tests.support.tiny import tiny_config

SIZES = (1, 2, 3, 4, 8)


@dataclass(frozen=True)
class Choice:
    """What a recipe says of its layout."""

    world: int
    llm: tuple[tuple[str, Any], ...]
    vision: tuple[tuple[str, Any], ...]
    projector: tuple[tuple[str, Any], ...] = ()
    micro_batch_size: int = 2

    def apply(self, config: Config) -> Config:
        """The recipe with this layout."""
        for name in ("llm", "vision", "projector"):
            part = getattr(config.model, name)
            part.parallel = ParallelConfig(**{k: list(v) if k == "ranks" else v for k, v in getattr(self, name)})
        config.trainer.micro_batch_size = self.micro_batch_size
        return config

    def layout(self) -> Layout:
        """What the engine makes of it."""
        return Layout.from_model(self.apply(matrix_config()).model, self.world)

    def with_projector_apart(self) -> Choice:
        """The same with another TP for the projector than for the encoder, where its ranks can be divided."""
        vision = self.layout().vision
        assert vision is not None
        tp = 1 if vision.tp > 1 else 2
        return self if len(vision.ranks) % tp else replace(self, projector=(("tp", tp),))

    def __str__(self) -> str:
        def spell(name: str) -> str:
            shown = [
                f"{k}{'+'.join(map(str, v)) if k == 'ranks' else '' if v is True else v}"
                for k, v in getattr(self, name)
            ]
            return f"{name}:{'-'.join(shown)}" if shown else ""

        text = " ".join(filter(None, map(spell, ("llm", "vision", "projector"))))
        return f"{self.world} ranks {text}".replace("sequence_parallel", "sp")


def matrix_config(**options: Any) -> Config:
    """A recipe whose sizes can be divided by 4: 25 steps of 12 samples."""
    config = tiny_config(num_heads=8, num_kv_heads=4, **options)
    config.trainer.steps, config.trainer.global_batch_size, config.trainer.micro_batch_size = 25, 12, 2
    return config


def layouts(world: int) -> Iterator[Choice]:
    """Every accepted layout: any encoder TP, on all ranks, on the first pipeline stage, or on ranks of its own."""
    everyone = tuple(range(world))
    splits = [
        None,
        *((everyone[:i], everyone[i:]) for i in range(1, world)),
        *((everyone[i:], everyone[:i]) for i in range(1, world)),
    ]
    for tp, pp, cp, sp, vision_tp, split in product(SIZES, SIZES, SIZES, (False, True), SIZES, splits):
        llm = dict(tp=tp, pp=pp, cp=cp, **({"sequence_parallel": True} if sp else {}))
        vision: dict[str, Any] = {"tp": vision_tp}
        if split is not None:
            vision["ranks"], llm["ranks"] = split
        yield from _accepted(world, llm, vision)
        if split is None and pp > 1:
            yield from _accepted(world, {**llm, "ranks": everyone}, {**vision, "ranks": everyone[: world // pp]})


def _accepted(world: int, llm: dict[str, Any], vision: dict[str, Any]) -> Iterator[Choice]:
    for micro_batch_size in (3, 4, 2):  # whichever divides the batch
        choice = Choice(world, tuple(llm.items()), tuple(vision.items()), micro_batch_size=micro_batch_size)
        config = choice.apply(matrix_config())
        try:
            check_model(config, Layout.from_model(config.model, world))
        except UserError:
            continue
        yield choice
        return
