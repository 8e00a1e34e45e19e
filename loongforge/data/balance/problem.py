"""What is to be placed, in whole numbers and in the order of tokens."""

from __future__ import annotations

from dataclasses import dataclass

from loongforge.data.balance.cells import Limit
from loongforge.data.balance.types import BatchMetadata, CostModel, Ints
from loongforge.data.balance.whole import factor_for, falling, rounded


@dataclass(frozen=True)
class Problem:
    """Samples from the most tokens to the fewest, the cells they go to, and the caps of a cell."""

    order: Ints
    """[n] index in the batch of every sample"""
    tokens: Ints
    """[n] falling"""
    llm: Ints
    """[n] cost in the language model, falling"""
    both: Ints
    """[n] cost with the sample's images"""
    unit_costs: Ints
    """[m] cost of one unit of every image, in the order of the batch, on the same scale as `llm`"""
    limits: list[Limit]
    ranks: int
    micro_batches: int
    cost: CostModel
    scale: float
    """`llm` of one millisecond; 0 where the language model costs nothing, and `llm` is `tokens`"""

    @property
    def cells(self) -> int:
        """How many there are."""
        return self.ranks * self.micro_batches

    @property
    def has_equal_units(self) -> bool:
        """There are units, and all cost the same."""
        return len(self.unit_costs) > 0 and bool(self.unit_costs.min() == self.unit_costs.max())

    def llm_cost_of(self, tokens: Ints) -> Ints:
        """`llm` of documents of so many tokens."""
        if not self.scale:
            return tokens
        return rounded(self.cost.documents(tokens) * self.scale)


def make_problem(
    batch: BatchMetadata, ranks: int, micro_batches: int, cost: CostModel, token_cap: int | None, patch_cap: int | None
) -> Problem:
    """Costs and limits of a batch.

    Raises:
        ValueError: no rank, no micro-batch, or a sample that alone exceeds a cap.
    """
    for name, number in (("ranks", ranks), ("micro_batches", micro_batches)):
        if number < 1:
            raise ValueError(f"{name} is {number}; at least 1 is needed")
    tokens, patches = batch.tokens(), batch.patches()
    _check_alone(batch, tokens, "token", token_cap)
    _check_alone(batch, patches, "patch", patch_cap)
    order = falling(tokens)
    documents, units = cost.documents(tokens[order]), cost.units(batch.patches_per_unit)
    count = max(len(batch), int(batch.image_units.sum()), 1)
    scale = factor_for([documents, units], count)
    llm, unit_costs = rounded(documents * scale), rounded(units * scale)
    both = llm + batch.per_sample(batch.image_units * unit_costs)[order]
    both >>= max(int(both.max(initial=0)).bit_length() - 32, 0)
    if not llm.any():
        llm, scale = tokens[order], 0.0
    limits = [
        Limit(name, sizes[order], int(cap))
        for name, sizes, cap in (("tokens", tokens, token_cap), ("patches", patches, patch_cap))
        if cap is not None
    ]
    return Problem(order, tokens[order], llm, both, unit_costs, limits, ranks, micro_batches, cost, scale)


def _check_alone(batch: BatchMetadata, sizes: Ints, what: str, cap: int | None) -> None:
    if cap is None or not len(sizes) or sizes.max() <= cap:
        return
    sample = int(sizes.argmax())
    images = int(batch.image_offsets[sample + 1] - batch.image_offsets[sample])
    more = int((sizes > cap).sum()) - 1
    raise ValueError(
        f"sample {sample} has {sizes[sample]} {what}{'es' if what == 'patch' else 's'} ({batch.text_tokens[sample]} of "
        f"text, {images} images); {what}_cap is {cap}: it fits in no micro-batch"
        + (f", nor do {more} others" if more else "")
    )
