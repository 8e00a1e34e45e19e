"""`loongforge chat`: what every process of it does. The first reads lines and prints answers."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist

from loongforge.config.errors import UserError
from loongforge.config.schema import Config
from loongforge.data.sample import SampleError
from loongforge.inference.conversation import Conversation
from loongforge.inference.generation import Settings
from loongforge.inference.sampling import Sampling
from loongforge.inference.session import loaded_model
from loongforge.parallel.session import broadcast_object

HELP = """\
/image FILE   shows an image with your next message; <image> in it says where, else it comes first
/reset        begins a new conversation
/history      what has been said
/save FILE    writes the conversation as a sample of data (JSONL)
/exit         leaves (so does the end of input)
Ctrl-C stops an answer (with one process)."""


def chat(
    config: Config,
    tree: dict[str, Any],
    *,
    checkpoint: str,
    max_new_tokens: int,
    sampling: dict[str, Any],
    stop: Sequence[str],
) -> int:
    """Talks with a trained model, line by line from stdin.

    Args:
        config: The recipe of the checkpoint, with the user's overrides.
        tree: The same as plain values.
        checkpoint: A run or a checkpoint.
        max_new_tokens: Longest answer.
        sampling: Fields of `Sampling`.
        stop: Strings that end an answer.

    Returns:
        Exit code.
    """
    with loaded_model(config, checkpoint) as loaded:
        processor = loaded.processor
        settings = Settings(processor.eos_id, max_new_tokens, processor.max_length, Sampling(**sampling))
        talk = _Talk(Conversation(loaded, settings, list(stop)), speaks=loaded.rank == 0)
        talk.note(f"{loaded.checkpoint.path}: say something; /help lists commands")
        while (line := broadcast_object(talk.read() if loaded.rank == 0 else None)) is not None:
            assert isinstance(line, str)
            if not talk.take(line.strip()):
                break
    return 0


class _Talk:
    """One line at a time.

    Args:
        conversation: With the model.
        speaks: This process has the terminal.
    """

    def __init__(self, conversation: Conversation, *, speaks: bool) -> None:
        self.conversation, self.speaks = conversation, speaks
        self.at_terminal = speaks and sys.stdin.isatty()
        self._saved: set[Path] = set()
        if self.at_terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - gives `input` its history and line editing

    def note(self, text: str) -> None:
        """Tells the user something that is no answer."""
        if self.speaks:
            print(text, file=sys.stderr, flush=True)

    def read(self) -> str | None:
        """The next line; None at the end of input."""
        while True:
            try:
                return input("> " if self.at_terminal else "")
            except EOFError:
                return None
            except KeyboardInterrupt:
                if not self.at_terminal:
                    raise
                self.note("\n(/exit leaves)")

    def take(self, line: str) -> bool:
        """Does what a line says; whether the talk goes on."""
        name, _, argument = line.partition(" ")
        commands = {"/image": self._image, "/reset": self._reset, "/history": self._history, "/save": self._save}
        if line == "/exit":
            return False
        try:
            if name in commands:
                commands[name](argument.strip())
            elif line == "/help":
                self.note(HELP)
            elif name.startswith("/") and "/" not in name[1:]:
                self.note(f"{name} is no command; /help lists them")
            elif line:
                self._answer(line)
        except (UserError, SampleError, OSError) as error:
            self.note(str(error))
        return True

    def _image(self, path: str) -> None:
        self.conversation.add_image(path)
        self.note(f"image {len(self.conversation.waiting)} of the next message: {path}")

    def _reset(self, _: str) -> None:
        self.conversation.reset()
        self.note("a new conversation")

    def _history(self, _: str) -> None:
        for message in self.conversation.messages:
            self.note(f"{message['role']}: {message['content']}")

    def _save(self, path: str) -> None:
        if not path:
            raise SampleError("/save FILE writes the conversation; name a file")
        if not self.conversation.messages:
            raise SampleError("nothing is said yet")
        target = Path(path).resolve()
        if target.exists() and target not in self._saved:
            raise SampleError(f"{path} exists already; name another file")
        self._saved.add(target)
        if self.speaks:
            self.conversation.save(path)
        self.note(f"saved as {path}")

    def _answer(self, line: str) -> None:
        with _interruptible() as interrupt:
            completion = self.conversation.say(line, show=self._show, is_stopped=interrupt.is_set)
        self._show("\n")
        if interrupt.is_set():
            self.note("(stopped)")
        elif completion.finish == "length":
            self.note("(cut: the answer or the conversation is as long as allowed)")

    def _show(self, text: str) -> None:
        if self.speaks and text:
            print(text, end="", flush=True)


class _Interrupt:
    """Whether Ctrl-C was pressed; a second time it interrupts as usual."""

    def __init__(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        """Whether it was."""
        return self._set

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._set:
            raise KeyboardInterrupt
        self._set = True


@contextlib.contextmanager
def _interruptible() -> Iterator[_Interrupt]:
    """Ctrl-C is noted instead of raised while the context lasts; of several processes none could stop alone."""
    interrupt = _Interrupt()
    if dist.get_world_size() > 1:
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
