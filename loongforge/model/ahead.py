"""Encoders on ranks of their own: they work ahead of the LLM by a bounded number of windows."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

from loongforge.model.encoding import Bridge, Encoded, ImageEncoder
from loongforge.model.windows import Window
from loongforge.parallel.exchange import Delivery


def windows_ahead(stages: int, window_size: int) -> int:
    """Windows in flight between encoder and LLM: what the LLM's pipeline holds, and one on the way to it."""
    return -(-stages // window_size) + 1


def encode_ahead(encoder: ImageEncoder, bridge: Bridge, windows: Sequence[Window], depth: int) -> None:
    """An encoder rank's part of a step: forward passes up to `depth` windows ahead of their backward passes.

    Gradients come back in the order of the windows. A frozen encoder waits for its rows to be taken instead.
    """
    flying: deque[tuple[Encoded, Delivery]] = deque()

    def finish() -> None:
        encoded, delivery = flying.popleft()
        delivery.sent()
        if bridge.returns:
            returned = bridge.give_back(encoded.window, [])
            encoder.backward(encoded, returned.wait())

    for window in windows:
        encoded = encoder.forward(window)
        flying.append((encoded, bridge.deliver(window, encoded.rows)))
        if len(flying) > depth:
            finish()
    while flying:
        finish()


class ImageRowStream:
    """An LLM rank's side: rows of each micro-batch in turn; receives are posted ahead, gradients leave when complete.

    Args:
        bridge: Between encoder and LLM.
        windows: Of the step.
        window_size: Micro-batches of a window.
        depth: Windows whose rows may wait here.
    """

    def __init__(self, bridge: Bridge, windows: Sequence[Window], window_size: int, depth: int) -> None:
        self.bridge, self.windows, self.window_size, self.depth = bridge, windows, window_size, depth
        self.deliveries: deque[Delivery] = deque()
        self.posted = 0
        self.accepted: dict[int, list[torch.Tensor | None]] = {}
        self.missing: dict[int, int] = {}
        """Gradients that a window still waits for."""
        self.returning: list[Delivery] = []

    def rows(self, number: int) -> torch.Tensor | None:
        """Image rows of micro-batch `number`; to be asked for in order."""
        index, place = divmod(number, self.window_size)
        if place == 0:
            self._take(index)
        part = self.accepted[index][place]
        if part is not None and part.requires_grad:
            part.register_post_accumulate_grad_hook(lambda _: self._returned(index))
        else:
            self.accepted[index][place] = None
        return part

    def _take(self, index: int) -> None:
        while self.posted < min(len(self.windows), index + self.depth):
            self.deliveries.append(self.bridge.deliver(self.windows[self.posted], {}))
            self.posted += 1
        window = self.windows[index]
        self.accepted[index] = self.bridge.accept(window, self.deliveries.popleft())
        self.missing[index] = sum(part is not None for part in self.accepted[index])

    def _returned(self, index: int) -> None:
        self.missing[index] -= 1
        if not self.missing[index]:
            parts = self.accepted[index]
            self.accepted[index] = [None] * len(parts)  # micro-batches without images may still be asked for
            self.returning.append(self.bridge.give_back(self.windows[index], parts))

    def close(self) -> None:
        """Returns when every gradient has left."""
        for delivery in self.returning:
            delivery.sent()
