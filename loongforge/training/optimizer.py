"""One gradient buffer and one AdamW per component, stepped together: joint norm, joint clipping, joint skip."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import (
    ChainedOptimizer,
    MegatronOptimizer,
    ParamKey,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig

from loongforge.config.schema import ComponentConfig, Config, OptimizerConfig
from loongforge.model.assembly import DTYPES, component_configs
from loongforge.model.vlm import VisionLanguageModel
from loongforge.parallel.groups import Groups


@dataclass
class StepOutcome:
    """What an optimizer step did."""

    grad_norm: float
    """Joint norm before clipping."""
    component_norms: dict[str, float] = field(default_factory=dict)
    """Norm of each trained component."""

    skipped: bool = False
    """Weights and optimizer state stayed as they were: loss or norm is not finite."""


class _Part:
    """Gradients and optimizer of one trainable component on this rank."""

    def __init__(self, config: Config, component: ComponentConfig, module: torch.nn.Module, groups: Any) -> None:
        self.lr_scale, self.groups = component.lr_scale, groups
        self.lora_lr_scale = component.lora.lr_scale if component.lora is not None else component.lr_scale
        settings = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True, use_distributed_optimizer=config.optimizer.distributed
        )
        self.ddp = DistributedDataParallel(module.config, settings, module, pg_collection=groups)
        self.optimizer: MegatronOptimizer = _without_stubs(
            get_megatron_optimizer(
                _megatron_config(config, component),
                [self.ddp],
                config_overrides=_overrides(config, component),
                use_gloo_process_groups=False,
                pg_collection=groups,
            )
        )

    def clear(self) -> None:
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()

    def reduce(self) -> None:
        finalize_model_grads([self.ddp], None, pg_collection=self.groups)
        _sum_parts(self.ddp, self.groups.tp)

    def set_learning_rate(self, rate: float, weight_decay: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (self.lora_lr_scale if group["is_decoupled_lr"] else self.lr_scale)
            group["weight_decay"] = weight_decay * group["wd_mult"]


def _without_stubs(optimizer: MegatronOptimizer) -> MegatronOptimizer:
    """Where experts alone train, megatron-core chains an optimizer of nothing before theirs, and cannot save the two.
    Parameter groups are the same on all ranks, so all of them leave it out."""
    chained = getattr(optimizer, "chained_optimizers", [])
    real = [part for part in chained if not part.is_stub_optimizer]
    return ChainedOptimizer(real) if real and len(real) < len(chained) else optimizer


def _sum_parts(ddp: DistributedDataParallel, group: dist.ProcessGroup) -> None:
    """Adds up gradients of what tensor-parallel ranks hold whole and have used in parts (adapters of experts)."""
    grads = [p.main_grad for p in ddp.module.parameters() if p.requires_grad and getattr(p, "in_parts", False)]
    if grads:
        together = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(together, group=group)
        for grad, part in zip(grads, together.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))


def _overrides(config: Config, component: ComponentConfig) -> dict[ParamKey, Any]:
    """megatron-core's own (no decay of biases and norms), and a group with its own rate for adapters."""
    found: dict[ParamKey, Any] = dict(get_standard_config_overrides(_megatron_config(config, component)))
    if component.lora is not None:
        found[ParamKey(name="*.lora.*")] = {"is_decoupled_lr": True}
    return found


def _megatron_config(config: Config, component: ComponentConfig) -> MegatronOptimizerConfig:
    wanted: OptimizerConfig = config.optimizer
    dtype = DTYPES[component.dtype or config.trainer.precision]
    return MegatronOptimizerConfig(
        optimizer="adam",
        lr=wanted.lr * component.lr_scale,
        weight_decay=wanted.weight_decay,
        adam_beta1=wanted.betas[0],
        adam_beta2=wanted.betas[1],
        adam_eps=wanted.eps,
        clip_grad=wanted.clip_grad,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=wanted.distributed,
    )


def _join_parameter_group_exchange() -> None:
    """Making an optimizer compares dense, then expert parameter groups over the whole world; ranks without the
    component take part with none."""
    for _ in range(2):
        dist.all_gather_object([None] * dist.get_world_size(), [])


class Optimizers:
    """All trainable components of this rank.

    Args:
        config: The recipe.
        model: This rank's parts; parameters that take no gradient are left alone.
        groups: Of all components.
    """

    def __init__(self, config: Config, model: VisionLanguageModel, groups: Groups) -> None:
        self.config = config.optimizer
        self.total_steps = config.trainer.steps
        self.parts: dict[str, _Part] = {}
        self.names = [name for name, part in component_configs(config).items() if part.trains]
        modules = model.components()
        for name in self.names:
            if name in modules:
                component = component_configs(config)[name]
                self.parts[name] = _Part(config, component, modules[name], groups.of(name))
            else:
                _join_parameter_group_exchange()

    def clear_gradients(self) -> None:
        """Before the first micro-batch of a step."""
        for part in self.parts.values():
            part.clear()

    def reduce_gradients(self) -> None:
        """After the last micro-batch: sums over data-parallel ranks, and what tensor parallelism and ties need."""
        for part in self.parts.values():
            part.reduce()

    def step(self, rate: float, *, usable: bool = True) -> StepOutcome:
        """Clips jointly and updates every component, or none where the joint norm is not finite.

        Args:
            rate: Learning rate before each component's `lr_scale`.
            usable: False to leave everything as it is (the loss is not finite); the same on every rank.
        """
        for part in self.parts.values():
            part.set_learning_rate(rate, self.config.weight_decay)
            part.optimizer.prepare_grads()
        norms = self._norms()
        joint = math.sqrt(sum(norm**2 for norm in norms.values()))
        outcome = StepOutcome(joint, norms, skipped=not (usable and math.isfinite(joint)))
        if not outcome.skipped:
            for part in self.parts.values():
                self._clip(part.optimizer, outcome.grad_norm)
                part.optimizer.step_with_ready_grads()
        return outcome

    def _norms(self) -> dict[str, float]:
        """Norm of every component, also of those that live on other ranks."""
        local = [
            float(self.parts[name].optimizer.get_grad_norm()) if name in self.parts else 0.0 for name in self.names
        ]
        norms = torch.tensor([math.inf if math.isnan(norm) else norm for norm in local], dtype=torch.float64)
        if dist.get_world_size() > 1:
            dist.all_reduce(norms, op=dist.ReduceOp.MAX)
        return dict(zip(self.names, norms.tolist(), strict=True))

    def _clip(self, optimizer: MegatronOptimizer, total: float) -> None:
        """Scales the gradients that the optimizer is about to use, as `torch.nn.utils.clip_grad_norm_` does."""
        limit = self.config.clip_grad
        if 0 < limit < total:
            params = [param for group in optimizer.param_groups for param in group["params"]]
            grads = [param.grad for param in params if param.grad is not None]
            if grads:  # a pipeline stage may hold nothing that trains
                torch._foreach_mul_(grads, limit / (total + 1e-6))
