"""`loongforge generate` and `loongforge chat`, as users call them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loongforge.cli.main import main
from loongforge.kernels.backend import select
from tests.support.ranks import RankPool
from tests.training.commands import command
from tests.training.recipes import quick_config

select("auto").activate()

Ask = Callable[..., list[Any]]
QUESTION = "What is the sum of the digits?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Iterator[Path]:
    """A run `run`, two images, and a file of questions; the working directory."""
    from loongforge.training.main import run as train

    path = tmp_path_factory.mktemp("asked")
    assert train(*quick_config(path / "run", data_dir, "trainer.steps=3", "model.llm.init_std=0.3")) == 0
    generator = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path / f"{name}.png")
    lines: list[dict[str, Any]] = [
        {"id": "one", "prompt": QUESTION, "images": ["a.png"]},
        {
            "id": "two",
            "images": ["a.png", "b.png"],
            "messages": [
                {"role": "user", "content": "Is <image> more than <image>?"},
                {"role": "assistant", "content": "the reference"},
            ],
        },
        {"prompt": "No image at all, but a longer question about nothing"},
    ]
    (path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    before = os.getcwd()
    os.chdir(path)
    yield path
    os.chdir(before)


@pytest.fixture
def ask(folder: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Objects that `generate --json` prints."""

    def run(*options: str) -> list[Any]:
        capsys.readouterr()
        assert main(["generate", "--checkpoint", "run", "--max-new-tokens", "6", "--json", *options]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_a_file_of_questions_is_answered_as_each_alone(ask: Ask) -> None:
    answers = ask("--data", "questions.jsonl")
    assert [answer["id"] for answer in answers] == ["one", "two", "questions.jsonl:3"]
    assert answers == ask("--data", "questions.jsonl", "--batch-size", "2")
    assert answers[0]["tokens"] == ask("--image", "a.png", "--prompt", QUESTION)[0]["tokens"]
    both = ["--image", "a.png", "--image", "b.png", "--prompt"]
    assert answers[1]["tokens"] == ask(*both, "Is <image> more than <image>?")[0]["tokens"]
    assert answers[1]["tokens"] != ask(*both, "<image>Is more than <image>?")[0]["tokens"]
    assert len({tuple(answer["tokens"]) for answer in answers}) == 3


def test_draws_repeat_and_follow_the_seed(ask: Ask) -> None:
    drawn = ["--data", "questions.jsonl", "--temperature", "1.5"]
    first = ask(*drawn, "--seed", "1")
    assert first == ask(*drawn, "--seed", "1", "--batch-size", "1")
    assert first != ask(*drawn, "--seed", "2")
    assert ask(*drawn, "--top-k", "1") == ask("--data", "questions.jsonl")


def test_a_stop_string_ends_an_answer(ask: Ask) -> None:
    whole = ask("--prompt", QUESTION)[0]
    stop = whole["answer"][2:4]
    cut = ask("--prompt", QUESTION, "--stop", stop)[0]
    assert cut["finish"] == "stop"
    assert cut["answer"] == whole["answer"][: whole["answer"].index(stop)].strip()
    assert whole["tokens"][: len(cut["tokens"])] == cut["tokens"]


def test_processes_need_not_divide_the_training_batch(ask: Ask, rank_pool: Callable[[int], RankPool]) -> None:
    options = ["--data", "questions.jsonl", "--temperature", "1", "--max-new-tokens", "6", "--json"]
    here = [os.path.abspath(option) if option.endswith("jsonl") else option for option in options]
    ranks = rank_pool(3).run(command, "generate", "--checkpoint", os.path.abspath("run"), *here)
    assert [json.loads(line) for line in ranks[0].splitlines()] == ask(*options)
    assert ranks[1:] == ["", ""]
    scored = rank_pool(3).run(command, "eval", "--checkpoint", os.path.abspath("run"))
    assert "samples      1500" in scored[0]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_text_appears_piece_by_piece_in_a_terminal(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ask("--prompt", QUESTION)[0]["answer"]
    pieces: list[str] = []
    terminal = _Terminal()
    monkeypatch.setattr(terminal, "write", pieces.append)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        assert main(["generate", "--checkpoint", "run", "--max-new-tokens", "6", "--prompt", QUESTION]) == 0
    assert "".join(pieces).strip() == whole
    assert len([piece for piece in pieces if piece.strip()]) > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either --prompt TEXT or --data FILE"),
        (["--prompt", "x", "--data", "questions.jsonl"], "either --prompt TEXT or --data FILE"),
        (["--data", "questions.jsonl", "--image", "a.png"], "--image goes with --prompt"),
        (["--data", "none.jsonl"], "--data none.jsonl: No such file"),
        (["--data", "bad.jsonl"], "--data bad.jsonl, line 2: it is not valid JSON"),
        (["--data", "lost.jsonl"], "--data lost.jsonl, line 1: "),
        (["--data", "empty.jsonl"], "it has no prompts"),
        (["--prompt", "x", "--image", "none.png"], "image none.png: No such file"),
        (["--prompt", "<image>"], "1 placeholders '<image>' but 0 images"),
        (["--prompt", "x", "--temperature", "-1"], "--temperature -1.0: allowed"),
        (["--prompt", "x", "--top-p", "1.5"], "--top-p 1.5: allowed"),
        (["--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens 0: allowed"),
    ],
)
def test_wrong_input_is_named(
    options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.jsonl").write_text('{"prompt": "x"}\nnot json\n')
    (folder / "lost.jsonl").write_text('{"prompt": "x", "images": ["none.png"]}\n')
    (folder / "empty.jsonl").write_text("\n")
    assert main(["generate", "--checkpoint", "run", *options]) == 2
    assert message in capsys.readouterr().err


CHAT = ["chat", "--checkpoint", "run", "--max-new-tokens", "6"]


@pytest.fixture
def talk(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """What `chat` prints: answers, and notices."""

    def run(*lines: str) -> tuple[str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
        assert main(CHAT) == 0
        printed = capsys.readouterr()
        return printed.out, printed.err

    return run


def test_a_conversation_keeps_what_was_said_and_shown(talk: Callable[..., Any], ask: Ask, folder: Path) -> None:
    """Each answer is that of `generate` to the whole conversation so far."""
    saved = folder / "talk.jsonl"
    saved.unlink(missing_ok=True)
    turns = ["/image a.png", QUESTION, "And why?", "/image b.png", "Is <image> more?"]
    out, _ = talk(*turns, f"/save {saved}", "/reset", QUESTION, "/exit", "never said")
    record = json.loads(saved.read_text())
    assert record["images"] == ["a.png", "b.png"]
    said = [message["content"] for message in record["messages"]]
    assert said[::2] == [f"<image>\n{QUESTION}", "And why?", "Is <image> more?"]
    again = ask("--prompt", QUESTION)[0]["answer"]
    assert out == "".join(f"{answer}\n" for answer in [*said[1::2], again])
    history = folder / "history.jsonl"
    for turn in (1, 3, 5):
        images = record["images"][: 1 if turn < 5 else 2]
        history.write_text(json.dumps({"images": images, "messages": record["messages"][:turn]}))
        assert ask("--data", str(history))[0]["answer"] == said[turn]


def test_a_mistake_does_not_end_the_talk(talk: Callable[..., Any]) -> None:
    long = "word " * 4000
    wrong = ["/image none.png", "/image questions.jsonl", "/nothing", "<image>", "/save questions.jsonl", "/save", long]
    out, err = talk(*wrong, QUESTION)
    for message in ("none.png: No such file", "/nothing is no command", "1 placeholders", "name a file", "too long"):
        assert message in err or (message == "too long" and "longer than" in err)
    assert out.count("\n") == 1, "the last line alone is answered"


def test_ctrl_c_stops_the_answer_and_not_the_program(folder: Path) -> None:
    command = [sys.executable, "-m", "loongforge.cli.main", "chat", "--checkpoint", "run"]
    longest = ["--max-new-tokens", "100000", "data.max_length=60000", "model.llm.max_seq_len=60000"]
    process = subprocess.Popen(
        [*command, *longest], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("hello\n")
    process.stdin.flush()
    assert process.stdout.read(1)  # an answer has begun
    process.send_signal(signal.SIGINT)
    process.stdin.write("/history\n")
    _, notices = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "(stopped)" in notices
    assert "user: hello" in notices
