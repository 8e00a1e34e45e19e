"""Phase times add up, on a clock that is ahead of the device and on one that waits for nothing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest

from loongforge.kernels.phases import PHASES, PhaseClock
from loongforge.kernels.tools import DeviceTools, HostMark


class _Device(DeviceTools):
    """Marks are moments of a device that the test moves on."""

    def __init__(self) -> None:
        self.launched = self.done = 0.0
        self.entered: list[str] = []

    def mark(self) -> Any:
        device, at = self, self.launched

        class Mark:
            time = at

            def reached(self) -> bool:
                return device.done >= at

            def seconds_since(self, earlier: Any) -> float:
                assert device.done >= at
                return at - float(earlier.time)

        return Mark()

    @contextmanager
    def named_range(self, name: str) -> Any:
        self.entered.append(f"<{name}")
        yield
        self.entered.append(f"{name}>")


def _step(clock: PhaseClock, device: _Device) -> dict[str, float]:
    clock.start()
    device.launched += 1
    with clock("data"):
        device.launched += 2
    with clock("encode"):
        device.launched += 3
        with clock("bridge"):
            device.launched += 4
        device.launched += 5
    with clock("pipeline"):
        with clock("llm_forward"):
            device.launched += 6
        clock.switch("llm_backward")
        device.launched += 7
        clock.switch("pipeline")
        device.launched += 8
    with clock("optimizer"):
        device.launched += 9
        device.done = max(device.done, device.launched - 4)
    return clock.stop()


def test_each_moment_belongs_to_one_phase() -> None:
    device = _Device()
    device.done = 1e9
    found = _step(PhaseClock(device), device)
    wanted = dict(data=2, encode=8, bridge=4, llm_forward=6, llm_backward=7, pipeline=8, reduce=0, optimizer=9, other=1)
    assert found == wanted and list(found) == list(PHASES)
    assert sum(found.values()) == device.launched


def test_what_the_device_has_not_done_is_left_to_the_next_step() -> None:
    """Without waiting: the end of the optimizer's step is read one step late, and nothing is lost or counted twice."""
    device = _Device()
    clock = PhaseClock(device)
    first = _step(clock, device)
    assert (first["optimizer"], first["pipeline"]) == (0, 8)
    device.launched += 100  # between steps: belongs to none
    second = _step(clock, device)
    assert (second["optimizer"], second["pipeline"]) == (9, 8)
    device.done = device.launched
    third = _step(clock, device)
    assert sum(found[name] for found in (first, second, third) for name in found) + 9 == pytest.approx(3 * 45)


def test_ranges_are_opened_and_closed_in_order() -> None:
    device = _Device()
    _step(PhaseClock(device), device)
    text = "<data data> <encode <bridge bridge> encode> <pipeline <llm_forward llm_forward> pipeline> "
    text += "<llm_backward llm_backward> <pipeline pipeline> <optimizer optimizer>"
    assert " ".join(device.entered) == text


def test_nothing_is_timed_or_named_outside_of_steps() -> None:
    device = _Device()
    clock = PhaseClock(device)
    with clock("encode"):
        clock.switch("bridge")
    assert not device.entered
    assert sum(_step(clock, device).values()) == 45 - 9


def test_the_phase_that_failed_is_known_and_the_next_step_is_whole() -> None:
    device = _Device()
    device.done = 1e9
    clock = PhaseClock(device)
    clock.start()
    with pytest.raises(MemoryError), clock("encode"), clock("bridge"):
        raise MemoryError
    assert clock.failed_in == "bridge"
    assert sum(_step(clock, device).values()) == 45
    assert clock.failed_in is None


def test_the_host_says_when_its_memory_is_gone() -> None:
    import torch

    tools = DeviceTools()
    gone = RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory")
    assert all(tools.is_out_of_memory(error) for error in (torch.OutOfMemoryError("x"), MemoryError(), gone))
    assert not tools.is_out_of_memory(RuntimeError("shapes do not match"))
    assert HostMark().reached() and isinstance(tools.mark(), HostMark)
