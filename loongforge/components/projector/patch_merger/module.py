"""The patch merger on megatron-core layers."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from megatron.core.transformer.module import MegatronModule

from loongforge.components.context import BuildContext
from loongforge.components.projector.patch_merger.config import PatchMergerConfig
from loongforge.components.transformer.layers import TorchNorm, transformer_config
from loongforge.components.transformer.linear import ColumnLinear, RowLinear
from loongforge.kernels import ops
from loongforge.parallel.images import Shapes


class PatchMerger(MegatronModule):
    """Neighbouring features to one embedding; the inner width is divided over tensor-parallel ranks."""

    any_size = True

    def __init__(self, config: PatchMergerConfig, context: BuildContext, *, input_size: int, output_size: int) -> None:
        kind = "RMSNorm" if config.norm == "rms_norm" else "LayerNorm"
        sizes = dict(hidden_size=output_size, num_attention_heads=context.tp, kv_channels=1, normalization=kind)
        layer = transformer_config(context, num_layers=1, **sizes)
        super().__init__(layer)
        self.tp_group = context.groups.tp
        self.merge = config.merge_size
        inner = config.merged_size(input_size)
        shared = dict(config=layer, init_method=torch.nn.init.zeros_, bias=True, tp_group=self.tp_group)
        self.norm = TorchNorm(layer, input_size, config.norm_eps)
        self.linear_1 = ColumnLinear(inner, inner, gather_output=False, **shared)
        self.linear_2 = RowLinear(inner, output_size, input_is_parallel=True, skip_bias_add=False, **shared)

    def forward(self, features: torch.Tensor, shapes: Shapes | None = None) -> torch.Tensor:
        """`[P, N, input_size]` -> `[P', N, output_size]`; with shapes: `[features, input_size]` -> `[tokens, ...]`."""
        if shapes is None:
            edge = round(features.shape[0] ** 0.5)
            return self._merge(features, _groups(1, edge, edge, self.merge))
        order, before = [], 0
        for shape in shapes:
            order.append(before + _groups(*shape.grid, self.merge))
            before += shape.features
        return self._merge(features[:, None], np.concatenate(order))[:, 0]

    def _merge(self, features: torch.Tensor, order: np.ndarray) -> torch.Tensor:
        """Features `[F, N, input_size]` in an order in which groups stand together."""
        chosen = self.norm(features)[torch.from_numpy(order).to(features.device)]
        grouped = chosen.unflatten(0, (-1, self.merge**2)).transpose(1, 2).flatten(2)  # [F / merge^2, N, inner]
        hidden, _ = self.linear_1(grouped)
        return self.linear_2(ops.gelu(hidden))[0]


@lru_cache(maxsize=4096)
def _groups(frames: int, height: int, width: int, merge: int) -> np.ndarray:
    """int64: features row by row -> group by group, groups row by row; what fills no group is left out."""
    down, across = height // merge, width // merge
    rows = np.arange(frames * height * width).reshape(frames, height, width)[:, : down * merge, : across * merge]
    return rows.reshape(frames, down, merge, across, merge).transpose(0, 1, 3, 2, 4).ravel()
