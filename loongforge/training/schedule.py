"""Learning rate as a function of the step."""

from __future__ import annotations

import math

from loongforge.config.schema import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Learning rate of a step: linear warm-up, then cosine or linear decay to `lr * min_lr_ratio`, or constant.

    Args:
        config: Peak, floor, warm-up and shape.
        step: Optimizer steps already made (0 for the first).
        total_steps: Steps of the whole run.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    left = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)
