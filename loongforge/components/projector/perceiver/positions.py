"""Fixed positions of the cells of a square grid: sines and cosines of column and row."""

from __future__ import annotations

import torch
import torch.nn.functional as F

_BASE = 10000.0


def grid_positions(edge: int, width: int) -> torch.Tensor:
    """float32 `[edge^2, width]`, row by row: half of the width turns with the column, half with the row (each the
    sines of all frequencies, then the cosines)."""
    frequencies = _BASE ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.outer(torch.arange(edge, dtype=torch.float64), frequencies)
    along = torch.cat([angles.sin(), angles.cos()], 1)  # [edge, width / 2]
    columns, rows = along.expand(edge, edge, -1), along[:, None].expand(edge, edge, -1)
    return torch.cat([columns, rows], -1).flatten(0, 1).float()


def resized(positions: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Positions `[n^2, C]` of a square grid stretched to `height` x `width` cells, bicubically."""
    old = round(len(positions) ** 0.5)
    if old == height == width:
        return positions
    image = positions.view(1, old, old, -1).permute(0, 3, 1, 2)
    stretched = F.interpolate(image, size=(height, width), mode="bicubic", align_corners=False)
    return stretched.permute(0, 2, 3, 1).flatten(0, 2)
