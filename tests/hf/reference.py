"""What transformers makes of a case: logits, loss, gradients, greedy tokens, and five steps of AdamW."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from loongforge.data.batch import IGNORE, Batch
from tests.components.hf_llms import on_disk
from tests.hf.cases import Case

LR, WEIGHT_DECAY, BETAS, EPS, CLIP = 1e-3, 0.05, (0.9, 0.95), 1e-6, 1.0
# with torch's eps of 1e-8 the noise of gradients that are zero in exact arithmetic (biases of keys) decides steps


@dataclass
class Reference:
    """Of one case and its batches."""

    logits: list[torch.Tensor] = field(default_factory=list)
    """Of the first batch: `[T, V]` for each sample."""
    losses: list[float] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """After all steps, by the names of `state_dict`."""
    saved: dict[str, torch.Tensor] = field(default_factory=dict)
    """The same as `save_pretrained` names them."""


def run_reference(model: Any, case: Case, batches: list[Batch]) -> Reference:
    """Trains on the batches; logits and gradients are those of the first one."""
    found = Reference()
    params = [param for _, param in model.named_parameters()]
    groups = [
        {"params": [param for param in params if param.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [param for param in params if param.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    for number, batch in enumerate(batches):
        logits = model(**case.inputs(batch)).logits
        if number == 0:
            found.logits = [row[:length].detach() for row, length in zip(logits, batch.lengths.tolist(), strict=True)]
        loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad(set_to_none=False)  # a step without images moves the encoder too, by its momentum
        loss.backward()
        found.losses.append(loss.item())
        if number == 0:
            found.gradients = on_disk({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        torch.nn.utils.clip_grad_norm_([p for p in params if p.grad is not None], CLIP)
        optimizer.step()
    found.weights = on_disk({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    return found


@torch.no_grad()
def greedy_tokens(model: Any, case: Case, prompt: Batch, count: int) -> tuple[list[int], list[float]]:
    """The most likely next tokens of one prompt, each with the margin to the second."""
    tokens, margins = prompt.tokens, []
    start = tokens.shape[1]
    for _ in range(count):
        inputs = case.inputs(Batch(tokens, prompt.labels, prompt.images, prompt.lengths, prompt.ids))
        best = model(**inputs).logits[0, -1].topk(2)
        margins.append((best.values[0] - best.values[1]).item())
        tokens = torch.cat([tokens, best.indices[:1][None]], 1)
    return tokens[0, start:].tolist(), margins
