"""Best-fit-decreasing under two budgets: tokens and patches."""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np

from loongforge.data.balance.types import Ints
from loongforge.data.balance.whole import falling

_LEAVES = 1 << 14  # rooms in tokens are told apart to so many steps of the budget
_SHARE = 1 << 30


def pack_both(lengths: Ints, patches: Ints, budget: int, patch_budget: int) -> Ints:
    """[n] pack of every sample; samples by the larger of their shares of the two budgets, each into the pack with the
    fewest tokens left (in steps) that has room for both. Each sample fits alone."""
    share = np.maximum(_shares(lengths, budget), _shares(patches, patch_budget))
    step = -(-(budget + 1) // _LEAVES)
    shelf = _Shelf(step, budget)
    packs = np.empty(len(lengths), np.int64)
    rooms: list[tuple[int, int]] = []  # of every pack: tokens, patches
    for sample in falling(share).tolist():
        tokens, seen = int(lengths[sample]), int(patches[sample])
        pack = shelf.take(tokens, seen)
        if pack is None:
            pack = len(rooms)
            rooms.append((budget, patch_budget))
        rooms[pack] = (rooms[pack][0] - tokens, rooms[pack][1] - seen)
        shelf.put(pack, *rooms[pack])
        packs[sample] = pack
    return packs


def _shares(sizes: Ints, budget: int) -> Ints:
    return np.floor(sizes * (_SHARE / max(budget, 1))).astype(np.int64)


class _Shelf:
    """Open packs by their room: a tree with steps of tokens as leaves; a node is the most patches of a pack below."""

    def __init__(self, step: int, budget: int) -> None:
        self._step = step
        self._leaves = 1 << (budget // step).bit_length()
        self._most = [-1] * (2 * self._leaves)
        self._packs: list[list[tuple[int, int]]] = [[] for _ in range(self._leaves)]  # heaps of (-patches, pack)

    def put(self, pack: int, tokens: int, patches: int) -> None:
        leaf = tokens // self._step
        heappush(self._packs[leaf], (-patches, pack))
        self._renew(leaf)

    def take(self, tokens: int, patches: int) -> int | None:
        """A pack with room for both."""
        leaf = self._first(-(-tokens // self._step), patches)
        if leaf is None:
            return None
        pack = heappop(self._packs[leaf])[1]
        self._renew(leaf)
        return pack

    def _renew(self, leaf: int) -> None:
        node, heap = leaf + self._leaves, self._packs[leaf]
        value = -heap[0][0] if heap else -1
        while node and self._most[node] != value:
            self._most[node] = value
            node //= 2
            value = max(self._most[2 * node], self._most[2 * node + 1]) if node else 0

    def _first(self, leaf: int, patches: int) -> int | None:
        """The first leaf from `leaf` on with a pack that has so many patches left."""
        if leaf >= self._leaves:
            return None
        node = leaf + self._leaves
        while self._most[node] < patches:
            while node & 1:  # a right child, or the root: go up until there is something to the right
                node >>= 1
            if not node:
                return None
            node += 1
        while node < self._leaves:
            node = 2 * node if self._most[2 * node] >= patches else 2 * node + 1
        return node - self._leaves
