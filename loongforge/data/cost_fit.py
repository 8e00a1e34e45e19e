"""Costs of samples from measured times: non-negative least squares over what ranks have done. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from loongforge.data.balance import CostModel

_FORGET = 0.8
"""Weight that earlier measurements keep when new ones are added."""
LLM, VISION = ("tokens", "tokens squared", "documents"), ("patches", "calls")


@dataclass
class Sums:
    """Normal equations of a linear model, which add up over ranks and steps."""

    features: int
    matrix: np.ndarray = field(init=False)
    """[features, features]: sum of outer products."""
    target: np.ndarray = field(init=False)
    """[features]: sum of features times milliseconds."""

    def __post_init__(self) -> None:
        self.matrix, self.target = np.zeros((self.features, self.features)), np.zeros(self.features)

    def add(self, features: np.ndarray, milliseconds: float) -> None:
        """One measurement."""
        self.matrix += np.outer(features, features)
        self.target += features * milliseconds

    def flat(self) -> np.ndarray:
        """Everything in one vector."""
        return np.concatenate([self.matrix.ravel(), self.target])

    def take(self, flat: np.ndarray) -> None:
        """Adds what `flat` of all ranks' sums gave; what was there before counts less."""
        cut = self.features**2
        self.matrix = _FORGET * self.matrix + flat[:cut].reshape(self.matrix.shape)
        self.target = _FORGET * self.target + flat[cut:]

    def solve(self) -> np.ndarray | None:
        """The non-negative coefficients with the least squares; None where nothing can be told."""
        if not self.matrix.any():
            return None
        scale = np.sqrt(np.maximum(np.diag(self.matrix), 1e-30))  # features differ by orders of magnitude
        matrix, target = self.matrix / np.outer(scale, scale), self.target / scale
        best, least = None, np.inf
        for size in range(self.features, 0, -1):  # few features: every active set is tried
            for kept in map(list, combinations(range(self.features), size)):
                solved = np.linalg.lstsq(matrix[np.ix_(kept, kept)], target[kept], rcond=1e-9)[0]
                if (solved < 0).any():
                    continue
                found = np.zeros(self.features)
                found[kept] = solved
                error = found @ matrix @ found - 2 * found @ target
                if error < least - 1e-12:
                    best, least = found, error
        return None if best is None else best / scale


class CostFit:
    """Learns a cost model from phase times; the same on every rank, since only sums over all ranks enter.

    Args:
        cost: To begin with, from the FLOPs of the recipe.
    """

    def __init__(self, cost: CostModel) -> None:
        self.cost = cost
        self.llm, self.vision = Sums(len(LLM)), Sums(len(VISION))
        self._new = Sums(len(LLM)), Sums(len(VISION))

    def note_llm(self, lengths: np.ndarray, milliseconds: float) -> None:
        """What this rank's language model took for documents of these lengths."""
        lengths = lengths.astype(float)
        self._new[0].add(np.array([lengths.sum(), np.square(lengths).sum(), len(lengths)]), milliseconds)

    def note_vision(self, patches: int, calls: int, milliseconds: float) -> None:
        """What its encoder took for so many patches in so many calls."""
        self._new[1].add(np.array([patches, calls], float), milliseconds)

    def pending(self) -> np.ndarray:
        """What this rank has noted since the last `update`; to be summed over all ranks."""
        return np.concatenate([part.flat() for part in self._new])

    def update(self, everyone: np.ndarray) -> CostModel:
        """Takes the sum of `pending` over all ranks in; returns the new cost model."""
        cut = len(self._new[0].flat())
        self.llm.take(everyone[:cut])
        self.vision.take(everyone[cut:])
        self._new = Sums(len(LLM)), Sums(len(VISION))
        llm, vision = self.llm.solve(), self.vision.solve()
        if llm is not None and llm[:2].any():
            self.cost = replace(self.cost, llm_linear=llm[0], llm_quadratic=llm[1], llm_per_sample=llm[2])
        if vision is not None and vision[0] > 0:
            self.cost = replace(self.cost, vision_linear=vision[0], vision_quadratic=0.0, vision_per_unit=0.0)
        return self.cost

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"llm": self.llm.flat().tolist(), "vision": self.vision.flat().tolist()}

    def restore(self, state: dict[str, Any], cost: CostModel) -> None:
        """Goes on from a checkpoint."""
        self.cost = cost
        self.llm.take(np.array(state["llm"]))
        self.vision.take(np.array(state["vision"]))
