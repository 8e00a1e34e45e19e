"""Values of the right type that still cannot be meant, key by key."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from loongforge.config.parallel import parse_ranks

Check = Callable[[Any], "str | None"]


def _at_least(low: float) -> Check:
    return lambda value: None if value >= low else f"must be at least {low:g}"


def _above(low: float) -> Check:
    return lambda value: None if value > low else f"must be greater than {low:g}"


def _share(value: float) -> str | None:
    return None if 0 <= value <= 1 else "must be between 0 and 1"


def _betas(value: list[float]) -> str | None:
    fine = len(value) == 2 and all(0 <= beta < 1 for beta in value)
    return None if fine else "must be two numbers, each at least 0 and below 1, like [0.9, 0.95]"


def _not_empty(value: Any) -> str | None:
    return None if value else "must not be empty"


def _ranks(value: list[int] | str) -> str | None:
    try:
        value = parse_ranks(value) if isinstance(value, str) else value
    except ValueError:
        return "must be a list of ranks, or like 0-3 or 0-3,8"
    fine = value and min(value) >= 0 and len(set(value)) == len(value)
    return None if fine else "must be a list of different ranks, each at least 0"


def _different(low: int) -> Check:
    def check(value: list[int]) -> str | None:
        fine = all(number >= low for number in value) and len(set(value)) == len(value)
        return None if fine else f"must be different whole numbers, each at least {low}"

    return check


_POSITIVE, _NOT_NEGATIVE = _at_least(1), _at_least(0)

_RANGES: dict[str, Check] = {
    "version": _POSITIVE,
    "name": lambda value: None if value and "/" not in value else "must be a name without '/'",
    "data.max_length": _at_least(2),
    "data.max_tiles": _POSITIVE,
    "data.max_bad": _NOT_NEGATIVE,
    "data.max_bad_ratio": _share,
    "data.max_sample_bytes": _POSITIVE,
    "data.prefetch": _NOT_NEGATIVE,
    "data.image_token": _not_empty,
    "data.train": _not_empty,
    "data.tokenizer": _not_empty,
    "optimizer.lr": _above(0),
    "optimizer.min_lr_ratio": _share,
    "optimizer.warmup_steps": _NOT_NEGATIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.betas": _betas,
    "optimizer.eps": _above(0),
    "optimizer.clip_grad": _NOT_NEGATIVE,
    "trainer.steps": _POSITIVE,
    "trainer.global_batch_size": _POSITIVE,
    "trainer.micro_batch_size": _POSITIVE,
    "trainer.micro_batch_tokens": _POSITIVE,
    "balance.patch_cap": _POSITIVE,
    "balance.refine_every": _NOT_NEGATIVE,
    "trainer.seed": _NOT_NEGATIVE,
    "trainer.threads": _POSITIVE,
    "trainer.eval_every": _NOT_NEGATIVE,
    "trainer.eval_samples": _POSITIVE,
    "trainer.eval_micro_batch_size": _POSITIVE,
    "trainer.sanity_samples": _NOT_NEGATIVE,
    "trainer.generate_samples": _NOT_NEGATIVE,
    "trainer.max_new_tokens": _POSITIVE,
    "trainer.max_skipped": _NOT_NEGATIVE,
    "checkpoint.every": _NOT_NEGATIVE,
    "checkpoint.keep": _POSITIVE,
    "logging.every": _POSITIVE,
    "profile.steps": _different(1),
    "profile.ranks": _different(0),
    "launcher.nproc": _POSITIVE,
    "cluster.nodes": _POSITIVE,
    "cluster.processes_per_node": _POSITIVE,
    "cluster.port": lambda value: None if 1024 <= value < 65535 else "must be a port from 1024 to 65534",
    "cluster.max_restarts": _NOT_NEGATIVE,
    "cluster.join_timeout_s": _POSITIVE,
    "run.dir": _not_empty,
    "run.resume": _not_empty,
}

_COMPONENT_RANGES: dict[str, Check] = {
    "lr_scale": _NOT_NEGATIVE,
    "init_std": _above(0),
    "lora.rank": _POSITIVE,
    "lora.alpha": _above(0),
    "lora.dropout": lambda value: None if 0 <= value < 1 else "must be at least 0 and below 1",
    "lora.lr_scale": _NOT_NEGATIVE,
    "lora.targets": _not_empty,
    "norm_eps": _above(0),
    "rope_theta": _above(0),
    "parallel.tp": _POSITIVE,
    "parallel.pp": _POSITIVE,
    "parallel.cp": _POSITIVE,
    "parallel.ep": _POSITIVE,
    "parallel.dp": _POSITIVE,
    "parallel.ranks": _ranks,
    **dict.fromkeys(("image_size", "patch_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads"), _POSITIVE),
    **dict.fromkeys(("head_dim", "mlp_hidden_size", "vocab_size", "max_seq_len"), _POSITIVE),
}


def range_problem(key: str, value: Any) -> str | None:
    """What is wrong with a value of the right type, or None."""
    if value is None:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    check = _RANGES.get(key)
    parts = key.split(".", 2)
    if parts[0] == "model" and len(parts) == 3:
        check = _COMPONENT_RANGES.get(parts[2])
    return check(value) if check else None
