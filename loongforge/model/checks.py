"""What makes a composed model impossible, found from its config before any weight is made. No torch here."""

from __future__ import annotations

from loongforge.components.llm.base import LLMConfig
from loongforge.components.projector.base import ProjectorConfig
from loongforge.components.trainable import unmatched, unmatched_problem
from loongforge.components.vision.base import VisionConfig
from loongforge.config.errors import UserError
from loongforge.config.schema import Config, ModelConfig
from loongforge.parallel.layout import Layout


def check_model(config: Config, layout: Layout, *, trains: bool = True) -> None:
    """Raises one UserError that lists everything in the model that does not fit.

    Args:
        config: The recipe.
        layout: Of the run.
        trains: Check the batches of training, and what is traced of it, as well.
    """
    found = problems(config, layout) if trains else model_problems(config.model, layout)
    _refuse(found)
    wrong = config.profile.problems(config.trainer.steps, layout.world_size) if trains else []
    if wrong:
        raise UserError("\n".join(wrong))


def require_sizes(model: ModelConfig, layout: Layout) -> None:
    """Raises one UserError that lists sizes of language model and encoder that do not fit one another."""
    _refuse(_part_problems(model, layout))


def _refuse(found: list[str]) -> None:
    if found:
        raise UserError("The model cannot be built:\n" + "\n".join(f"  - {line}" for line in found))


def _part_problems(model: ModelConfig, layout: Layout) -> list[str]:
    """Of the language model and the encoder, each by itself."""
    assert isinstance(model.llm, LLMConfig)
    found = [f"model.llm.{line}" for line in model.llm.problems(layout.llm.tp, layout.llm.pp, layout.llm.ep)]
    if isinstance(model.vision, VisionConfig):
        tp = layout.vision.tp if layout.vision else 1
        found += [f"model.vision.{line}" for line in model.vision.problems(tp)]
    return found


def problems(config: Config, layout: Layout) -> list[str]:
    """Everything in model and batch that does not fit the layout, or one another."""
    return model_problems(config.model, layout) + _batch_problems(config, layout) + _packing_problems(config, layout)


def model_problems(model: ModelConfig, layout: Layout) -> list[str]:
    """Sizes that do not fit one another or the layout, each with its key."""
    vision, projector, llm = model.vision, model.projector, model.llm
    assert isinstance(llm, LLMConfig)
    found = _part_problems(model, layout)
    if (vision is None) != (projector is None):
        missing = "projector" if projector is None else "vision"
        found.append(f"model.{missing} is missing: vision and projector come together, or neither for text only")
    if isinstance(vision, VisionConfig) and isinstance(projector, ProjectorConfig):
        sizes = dict(input_size=vision.output_size, output_size=llm.hidden_size)
        tp = layout.projector.tp if layout.projector else 1
        found += [f"model.projector.{line}" for line in projector.problems(tp, **sizes)]
        if projector.cuts_images and vision.any_size:
            found.append(f"model.projector.type={projector.type} cuts images, which {vision.type} takes whole")
        elif not vision.any_size:
            lines = projector.tile_problems(vision.image_size, vision.num_image_tokens)
            found += [f"model.projector.{line}" for line in lines]
        tokens = projector.num_tokens(vision.num_image_tokens)
        if tokens >= llm.max_seq_len:
            found.append(f"an image takes {tokens} tokens, but model.llm.max_seq_len={llm.max_seq_len}")
    found += _pattern_problems(llm)
    if not any(part is not None and part.trains for part in (vision, projector, llm)):
        found.append("every component is frozen: nothing would be learned; set freeze=false on one")
    return found


def _pattern_problems(llm: LLMConfig) -> list[str]:
    """Patterns of `train` that match nothing, where that is known before the model is built."""
    names = list(llm.parameter_sizes()) if llm.train else []
    lost = unmatched(llm.train, names) if names else []
    return [f"model.llm.{unmatched_problem(pattern, names)}" for pattern in lost]


def micro_batch_size(config: Config, layout: Layout) -> int:
    """Samples of a forward pass: the recipe's, or a rank's whole share of the global batch where that is smaller."""
    return min(config.trainer.micro_batch_size, max(1, config.trainer.global_batch_size // layout.dp))


def _batch_problems(config: Config, layout: Layout) -> list[str]:
    if config.packing.enabled:
        return []  # rows are dealt out, and a rank without one has an empty row
    whole, micro = config.trainer.global_batch_size, micro_batch_size(config, layout)
    unit = micro * layout.dp
    if whole % unit == 0:
        return []
    nearest = max(1, round(whole / unit)) * unit
    return [
        f"trainer.global_batch_size={whole} cannot be divided into micro-batches of trainer.micro_batch_size={micro} "
        f"on dp={layout.dp} ranks; nearest: {nearest}"
    ]


def window_size(layout: Layout, wanted: int | None, num_micro_batches: int, micro_batch_size: int) -> int:
    """Micro-batches of a window.

    Args:
        layout: Of the run.
        wanted: `trainer.encode_window`; None: as few as give every encoder replica an image where each sample has one,
            and the whole step where a pipeline would otherwise be drained in between.
        num_micro_batches: Of a step.
        micro_batch_size: Samples of one.
    """
    if wanted is not None or layout.vision is None:
        return min(wanted or 1, num_micro_batches)
    if layout.llm.pp > 1 and not layout.decoupled:
        return num_micro_batches
    siblings = -(-layout.vision.dp // layout.dp)
    return max(1, min(num_micro_batches, -(-siblings // micro_batch_size)))


def micro_batch_tokens(config: Config, layout: Layout) -> int:
    """Tokens of a packed micro-batch at most; a whole number of what tensor and context parallelism divide."""
    given = config.trainer.micro_batch_tokens
    tokens = micro_batch_size(config, layout) * longest_sample(config) if given is None else given
    return tokens // layout.sequence_multiple * layout.sequence_multiple


def longest_sample(config: Config) -> int:
    """Tokens of the longest sample that the recipe allows."""
    llm = config.model.llm
    assert isinstance(llm, LLMConfig)
    return min(config.data.max_length or llm.max_seq_len, llm.max_seq_len)


def _packing_problems(config: Config, layout: Layout) -> list[str]:
    if not config.packing.enabled:
        given = {
            "balance.mode": config.balance.mode != "none",
            "trainer.micro_batch_tokens": config.trainer.micro_batch_tokens,
        }
        return [f"{key} needs packing.enabled=true" for key, is_given in given.items() if is_given]
    tokens, longest = micro_batch_tokens(config, layout), longest_sample(config)
    if tokens >= longest:
        return []
    needed = -(-longest // layout.sequence_multiple) * layout.sequence_multiple
    return [
        f"trainer.micro_batch_tokens={config.trainer.micro_batch_tokens} is less than the longest sample of {longest} "
        f"tokens (data.max_length, or the LLM's max_seq_len); allowed: {needed} or more, or a lower data.max_length"
    ]
