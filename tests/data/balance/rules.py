"""What every plan has to keep, whatever the samples."""

from __future__ import annotations

import numpy as np

from loongforge.data.balance import BatchMetadata, Plan


def broken_rules(
    made: Plan,
    batch: BatchMetadata,
    *,
    ranks: int,
    micro_batches: int,
    token_cap: int | None = None,
    patch_cap: int | None = None,
) -> list[str]:
    """The rules that a plan breaks, in words; none where it is right."""
    shape = _wrong_shape(made, batch, ranks, micro_batches)
    if shape:
        return [shape]
    found, cells = [], ranks * micro_batches
    cell = made.rank * micro_batches + made.micro_batch
    if len(batch) >= cells and np.bincount(cell, minlength=cells).min() == 0:
        found.append("an empty cell")
    if token_cap is not None and np.bincount(cell, weights=batch.tokens(), minlength=cells).max() > token_cap:
        found.append("more tokens than the cap")
    if patch_cap is not None:
        if np.bincount(cell, weights=batch.patches(), minlength=cells).max() > patch_cap:
            found.append("more patches than the cap where samples are")
        if made.encoder_rank is not None and _most_encoded(made, batch, micro_batches) > patch_cap:
            found.append("more patches than the cap where units are encoded")
    return found


def _wrong_shape(made: Plan, batch: BatchMetadata, ranks: int, micro_batches: int) -> str:
    if made.rank.shape != (len(batch),) or made.micro_batch.shape != (len(batch),):
        return "not one rank and micro-batch for each sample"
    places = [("rank", made.rank, ranks), ("micro_batch", made.micro_batch, micro_batches)]
    if made.encoder_rank is not None:
        if made.encoder_rank.shape != (batch.image_units.sum(),):
            return "not one encoder rank for each unit"
        places.append(("encoder_rank", made.encoder_rank, ranks))
    wrong = [name for name, values, count in places if len(values) and not 0 <= values.min() <= values.max() < count]
    return f"{wrong[0]} out of range" if wrong else ""


def _most_encoded(made: Plan, batch: BatchMetadata, micro_batches: int) -> float:
    """Patches of the cell that encodes the most."""
    image = batch.image_of_unit()
    step = made.micro_batch[batch.sample_of_image()[image]]
    patches = np.bincount(made.encoder_rank * micro_batches + step, weights=batch.patches_per_unit[image])
    return float(patches.max(initial=0))
