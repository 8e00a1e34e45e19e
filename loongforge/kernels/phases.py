"""Where the time of a step goes: phases that are always timed, and named in traces."""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, ExitStack

from loongforge.kernels.tools import DeviceTools, Mark

PHASES = ("data", "encode", "bridge", "llm_forward", "llm_backward", "pipeline", "reduce", "optimizer", "other")
"""In the order of a step. `encode` is forward and backward of encoder and projector, `bridge` image rows and their
gradients on their way, `pipeline` the LLM's stages waiting for one another, `other` all that has no name."""
_OTHER = "other"


class _Phase:
    """Within it, time belongs to a phase; what is entered inside it is taken out."""

    __slots__ = ("clock", "name")

    def __init__(self, clock: PhaseClock, name: str) -> None:
        self.clock, self.name = clock, name

    def __enter__(self) -> None:
        self.clock.enter(self.name)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.clock.leave(error)


class PhaseClock:
    """Divides the time of steps among phases: each moment belongs to one.

    Nothing waits for the device. A moment that it has not reached when a step ends is left to the next step.

    Args:
        tools: Of the device.
    """

    def __init__(self, tools: DeviceTools) -> None:
        self.tools = tools
        self.tracing = False
        """Phases are ranges of torch's profiler as well."""
        self.failed_in: str | None = None
        """The innermost phase that the last error came out of."""
        self._phases = {name: _Phase(self, name) for name in PHASES}
        self._stack: list[tuple[str, ExitStack]] = []
        self._marks: deque[tuple[Mark, str | None]] = deque()
        self._last: Mark | None = None
        self._seconds = dict.fromkeys(PHASES, 0.0)

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """A context whose time belongs to a phase, where a step is being timed."""
        return self._phases[name]

    def start(self) -> None:
        """A step begins; the time since the last one ended belongs to none."""
        while self._stack:  # an error has ended the step before
            self._pop()
        self._mark(None)
        self.failed_in = None
        self._push(_OTHER)

    def stop(self) -> dict[str, float]:
        """The step ends; seconds of each phase that have become known since the last call."""
        self._mark(self._stack[-1][0])
        while self._stack:
            self._pop()
        self._settle()
        found, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return found

    def enter(self, name: str) -> None:
        """From now on time belongs to `name`, until it is left."""
        if self._stack:
            self._mark(self._stack[-1][0])
            self._push(name)

    def leave(self, error: BaseException | None = None) -> None:
        """Time belongs to the phase around it again."""
        if len(self._stack) > 1:
            name = self._stack[-1][0]
            self.failed_in = self.failed_in or (name if error is not None else None)
            self._mark(name)
            self._pop()

    def switch(self, name: str) -> None:
        """The phase that holds now ends, and `name` takes its place."""
        if len(self._stack) > 1 and self._stack[-1][0] != name:
            self._mark(self._stack[-1][0])
            self._pop()
            self._push(name)

    def _push(self, name: str) -> None:
        ranges = ExitStack()
        if name != _OTHER:
            ranges.enter_context(self.tools.named_range(name))
            if self.tracing:
                from torch.profiler import record_function

                ranges.enter_context(record_function(name))
        self._stack.append((name, ranges))

    def _pop(self) -> None:
        self._stack.pop()[1].close()

    def _mark(self, phase: str | None) -> None:
        """Time since the mark before belongs to `phase`."""
        self._marks.append((self.tools.mark(), phase))

    def _settle(self) -> None:
        """Adds up what the device has done."""
        while self._marks and self._marks[0][0].reached():
            mark, phase = self._marks.popleft()
            if phase is not None and self._last is not None:
                self._seconds[phase] += mark.seconds_since(self._last)
            self._last = mark
