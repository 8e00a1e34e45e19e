"""Every encoder, projector and language model that comes with a tiny size, put together from YAML."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from itertools import product
from pathlib import Path

from loongforge.components.registry import KINDS, names, typed_config
from loongforge.config.compose import compose
from loongforge.config.folders import configs_dir
from loongforge.config.schema import Config, ModelConfig
from loongforge.model.checks import model_problems
from loongforge.parallel.layout import Layout

PROJECTOR_SIZES = {"perceiver": "perceiver_tiny", "resampler": "resampler_tiny", "vit": "vit_tiny"}
CHANGES = {"llava_next": ["model.projector.grid_pinpoints=[[32,64],[64,32]]"]}


def choices(kind: str) -> dict[str, str]:
    """Group file of every type: its tiny one; projectors without one have no sizes of their own."""
    if kind == "projector":
        return {name: PROJECTOR_SIZES.get(name, name) for name in names(kind)}
    found: dict[str, str] = {}
    for file in sorted((configs_dir() / kind).glob("*_tiny.yaml")):
        found.setdefault(_type(file.read_text()), file.stem)
    return found


def _type(text: str) -> str:
    return next(line.split(":")[1].strip() for line in text.splitlines() if line.startswith("type:"))


@cache
def _composed(kind: str, name: str) -> Config:
    overrides = [f"{kind}={choices(kind)[name]}", *CHANGES.get(name, [])]
    sizes = ["trainer.global_batch_size=4", "trainer.micro_batch_size=2", "trainer.steps=2"]
    return typed_config(compose(["recipe=llava_sft", *overrides, *sizes]).tree)


def compose_one(vision: str, projector: str, llm: str) -> Config:
    """A small training run of three types, each composed from its YAML file."""
    config = deepcopy(_composed("llm", llm))
    config.model = deepcopy(
        ModelConfig(
            vision=_composed("vision", vision).model.vision,
            projector=_composed("projector", projector).model.projector,
            llm=config.model.llm,
        )
    )
    config.model.llm.max_seq_len = 1024  # type: ignore[attr-defined]
    return config


def obstacles(config: Config) -> list[str]:
    """Why a combination is refused before it is built."""
    return model_problems(config.model, Layout.from_model(config.model, 1))


def all_combinations() -> list[tuple[str, str, str]]:
    """Types of encoder, projector and language model."""
    return list(product(*(choices(kind) for kind in KINDS)))


def some_combinations() -> list[tuple[str, str, str]]:
    """Every encoder with every projector, language models in turn."""
    llms = list(choices("llm"))
    pairs = product(choices("vision"), choices("projector"))
    return [(vision, projector, llms[number % len(llms)]) for number, (vision, projector) in enumerate(pairs)]


PAGE = Path(__file__).parents[2] / "docs" / "components.md"
BEGIN, END = "<!-- combinations: begin (python -m tests.components.combinations) -->", "<!-- combinations: end -->"


def table() -> str:
    """A row for each encoder, a column for each projector: with which language models they train."""
    projectors, llms, notes = list(choices("projector")), list(choices("llm")), dict[str, int]()
    lines = [
        "| encoder | " + " | ".join(f"`{name}`" for name in projectors) + " |",
        "|---" * (len(projectors) + 1) + "|",
    ]
    for vision in choices("vision"):
        cells = []
        for projector in projectors:
            reasons = [tuple(obstacles(compose_one(vision, projector, llm))) for llm in llms]
            works = sum(not reason for reason in reasons)
            cell = "all" if works == len(llms) else f"{works} of {len(llms)}"
            if works < len(llms):
                reason = next(reason for reason in reasons if reason)[0].removeprefix("model.projector.")
                cell += f" ({notes.setdefault(reason.rpartition(',')[0] or reason, len(notes) + 1)})"
            cells.append(cell)
        lines.append(f"| `{vision}` | " + " | ".join(cells) + " |")
    lines += ["", f"`all`: {', '.join(f'`{llm}`' for llm in llms)}."]
    lines += [f"({number}) `{reason}`" for reason, number in notes.items()]
    return "\n".join(lines)


def page() -> str:
    """The page with the table as it is now."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page())
