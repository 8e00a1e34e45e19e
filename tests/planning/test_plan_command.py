"""`loongforge plan`: what it prints can be acted on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from loongforge.cli.main import main
from loongforge.planning.device import FOLDER, known_devices, load_device

Capture = pytest.CaptureFixture[str]

LLAVA = ["+recipe=llava_1_5_7b", "data.train=x", "data.tokenizer=y"]
LLAMA_3 = [*LLAVA, "llm=llama3_8b", "--world", "8", "--device", "h100"]
INTERN = [
    *(*LLAVA, "llm=qwen2_5_72b", "model.vision.hidden_size=3200", "model.vision.num_layers=45"),
    *("model.vision.num_heads=25", "model.vision.mlp_hidden_size=12800", "model.vision.freeze=false"),
    *("trainer.global_batch_size=1024", "--world", "512", "--device", "h200"),
]  # fmt: skip
"""InternViT-6B's sizes and Qwen2.5-72B."""


def _json(capsys: Capture, *argv: str) -> Any:
    assert main(["plan", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_rank_is_accounted_for(capsys: Capture) -> None:
    argv = [*LLAMA_3, "model.llm.parallel.tp=2", "model.llm.parallel.pp=2", "model.vision.parallel.tp=4"]
    plan = _json(capsys, *argv)
    assert [rank["rank"] for rank in plan["ranks"]] == list(range(8))
    assert {rank["llm"]["pp"]: rank["llm"]["layers"] for rank in plan["ranks"]} == {0: [0, 15], 1: [16, 31]}
    assert sorted({(rank["vision"]["tp"], rank["vision"]["dp"]) for rank in plan["ranks"]}) == [
        (tp, dp) for tp in range(4) for dp in range(2)
    ]
    replicas = 2  # of the LLM's shards; norms are on every tensor-parallel rank
    llm = sum(rank["params"] for rank in plan["ranks"])
    assert llm > replicas * plan["components"]["llm"]["params"]
    for rank in plan["ranks"]:
        memory = rank["memory"]
        assert memory["total"] == pytest.approx(sum(size for name, size in memory.items() if name != "total"))
        assert rank["received"]["total"] > 0
    assert plan["memory"]["bytes"] == max(rank["memory"]["total"] for rank in plan["ranks"])
    times = plan["step"]["times"]
    assert plan["step"]["seconds"] == pytest.approx(sum(times.values()))
    assert {name: size["factor"] for name, size in plan["components"].items()} == {
        "vision": 2,
        "projector": 6,
        "llm": 6,
    }


@pytest.mark.parametrize("argv", [LLAMA_3, INTERN], ids=["llama3_8b on 8", "72b on 512"])
def test_real_sizes(argv: list[str], capsys: Capture) -> None:
    found = _json(capsys, *argv, "--search")["layouts"]
    assert found[0]["fits"]
    best = _json(capsys, *argv, *found[0]["overrides"])
    assert best["memory"]["fits"]
    assert best["step"]["seconds"] == pytest.approx(found[0]["seconds"])
    assert not any(line.startswith("better") for line in best["advice"])
    assert len(best["ranks"]) == best["processes"]


@pytest.mark.parametrize("number", [0, 5, 40, -1])
def test_what_the_search_finds_can_be_planned(number: int, capsys: Capture) -> None:
    """The overrides lead to the very layout, whatever the recipe asked for before."""
    asked = ["model.llm.parallel.tp=4", "model.vision.parallel.dp=4", "model.projector.parallel.tp=1"]
    found = _json(capsys, *LLAMA_3, *asked, "--search")["layouts"][number]
    plan = _json(capsys, *LLAMA_3, *asked, *found["overrides"])
    assert plan["step"]["seconds"] == pytest.approx(found["seconds"])
    assert plan["memory"]["bytes"] == pytest.approx(found["bytes"])
    assert plan["memory"]["fits"] == found["fits"]


def test_advice_for_what_does_not_fit_holds(capsys: Capture) -> None:
    argv = [*LLAMA_3, "trainer.recompute=none", "trainer.micro_batch_size=16", "optimizer.distributed=false"]
    plan = _json(capsys, *argv)
    assert not plan["memory"]["fits"]
    leaner, other = plan["advice"]
    for text, start in ((leaner, "fits with "), (other, "the fastest layout that fits: ")):
        assert text.startswith(start)
        overrides = [word.rstrip(":") for word in text.removeprefix(start).split(" (")[0].split() if "=" in word]
        assert _json(capsys, *argv, *overrides)["memory"]["fits"]


def test_advice_for_what_is_slow_holds(capsys: Capture) -> None:
    slow = [*LLAMA_3, "model.llm.parallel.tp=8"]
    plan = _json(capsys, *slow)
    (line,) = plan["advice"]
    wanted, ratio = line.removeprefix("better: ").split(" is predicted ")
    faster = _json(capsys, *slow, *wanted.split())
    assert plan["step"]["seconds"] / faster["step"]["seconds"] == pytest.approx(float(ratio.split()[0]), abs=0.01)


def test_text_shows_who_holds_what(capsys: Capture) -> None:
    argv = [
        "plan",
        *LLAMA_3,
        "model.llm.parallel.tp=2",
        "model.vision.parallel.ranks=[6,7]",
        "trainer.global_batch_size=96",
    ]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("rank 6 ")]
    assert "vision tp0 dp0" in row and "llm" not in row
    (row,) = [line for line in lines if line.startswith("rank 5 ")]
    assert "llm layers 0-31 tp1 dp2" in row and "vision" not in row
    assert any("tp1 dp2 on ranks 6-7" in line for line in lines)
    assert any(line.startswith("predicted step: ") and "MFU" in line for line in lines)
    assert main(["plan", *INTERN, "model.llm.parallel.tp=4", "model.llm.parallel.pp=8"]) == 0
    text = capsys.readouterr().out
    assert "ranks 0-63" in text and "layers 0-9 tp0-3 dp0-15" in text and len(text.splitlines()) < 40


@pytest.mark.parametrize(
    ("argv", "messages"),
    [
        (["model.llm.parallel.tp=3"], ["tp=3", "not 8", "Nearest layouts of 8", "model.llm.parallel.tp=2"]),
        (["model.llm.parallel.pp=5"], ["pp=5", "Nearest layouts of 8", "model.llm.parallel.pp=4"]),
        (["model.vision.parallel.ranks=[0,8]"], ["8 is not a rank", "Nearest layouts"]),
        (["model.vision.num_heads=5"], ["model.vision.hidden_size=1024 is not a multiple of num_heads=5"]),
        (["trainer.global_batch_size=4"], ["trainer.global_batch_size=4", "dp=8", "Nearest layouts", "cp=2"]),
        (["--world", "0"], ["--world 0 must be at least 1"]),
        (["--device", "h10"], ["--device h10 is not known", "Did you mean 'h100'?", "p800"]),
        (["--images-per-sample", "4"], ["2304 tokens, more than --tokens-per-sample 2048"]),
        (["--images-per-sample", "-1"], ["--images-per-sample -1.0 must be at least 0"]),
        (
            ["--search", "model.llm.num_heads=7"],
            ["head_dim=585 is odd", "num_heads=7 is not a multiple of num_kv_heads=8"],
        ),
        (["--search", "model.projector=null"], ["model.projector is missing"]),
        (["--tokens-per-sample", "100000"], ["more than the recipe's longest sample of 2048 tokens"]),
        (["--images-per-sample", "nan"], ["--images-per-sample nan must be at least 0"]),
        (["kernels.attention=sdp"], ["kernels.attention='sdp' is not known", "Allowed: auto, ", "flash_attn"]),
    ],
)
def test_refusals_explain(argv: list[str], messages: list[str], capsys: Capture) -> None:
    assert main(["plan", *LLAMA_3, *argv]) == 2
    shown = capsys.readouterr()
    assert all(message in shown.err for message in messages), shown.err
    assert shown.out == ""


def test_kernels_of_other_machines_may_be_planned(capsys: Capture) -> None:
    _json(capsys, *LLAMA_3, "kernels.attention=flash_attn", "kernels.rms_norm=reference")


def test_own_device(capsys: Capture, tmp_path: Path) -> None:
    values = yaml.safe_load((FOLDER / "h100.yaml").read_text())
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values | {"memory_gib": 1.0}))
    assert not _json(capsys, *LLAMA_3, "--device", str(file))["memory"]["fits"]
    file.write_text(yaml.safe_dump({key: value for key, value in values.items() if key != "per_node"} | {"per_nod": 8}))
    assert main(["plan", *LLAMA_3, "--device", str(file)]) == 2
    assert "unknown key 'per_nod'. Did you mean 'per_node'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in known_devices() if name != "cpu"])
def test_known_devices_have_sources(name: str) -> None:
    device = load_device(name)
    assert device.sources
    assert device.peak_tflops["bf16"] > device.peak_tflops["fp32"] > 0


def test_this_machine_is_measured(capsys: Capture) -> None:
    plan = _json(capsys, "+recipe=llava_sft", "launcher.nproc=2")
    assert plan["device"]["name"].startswith("this CPU")
    assert 0 < plan["step"]["seconds"] < 60
    assert plan["device"]["memory_gib"] * 2 > 1


def test_a_rank_in_the_middle_may_be_the_fullest(capsys: Capture) -> None:
    """An encoder on some of the LLM's ranks, none of them the first."""
    argv = ["--world", "4", "--device", "h100", "model.llm.parallel.ranks=0-3", "model.vision.parallel.ranks=[3]"]
    more = [
        "model.vision.freeze=false",
        "trainer.recompute=none",
        "trainer.encode_window=24",
        "model.llm.parallel.tp=2",
    ]
    plan = _json(capsys, *LLAVA, *argv, *more)
    assert plan["memory"]["bytes"] == max(rank["memory"]["total"] for rank in plan["ranks"])
    assert plan["memory"]["fullest_rank"] == 3


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 7, 8])
@pytest.mark.parametrize("seed", range(6))
def test_layouts_that_are_proposed_are_accepted(seed: int, world: int, capsys: Capture) -> None:
    """Whatever is wrong with the batch and the layout."""
    draw = random.Random(100 * seed + world)
    asked = [
        f"trainer.global_batch_size={draw.choice([6, 32, 48])}",
        f"trainer.micro_batch_size={draw.choice([1, 5, 32])}",
        f"model.llm.parallel.tp={draw.choice([1, 2, 3, 4, 5])}",
        f"model.llm.parallel.pp={draw.choice([1, 2, 3])}",
        f"model.vision.parallel.tp={draw.choice([1, 2, 3])}",
    ]
    common = ["plan", "+recipe=llava_sft", "--world", str(world), "--device", "h100", *asked]
    if main(common) == 0:
        return
    capsys.readouterr()
    main(common)
    proposed = [
        line.removeprefix("  - ").split() for line in capsys.readouterr().err.split("that fit:")[1].splitlines() if line
    ]
    assert proposed
    for overrides in proposed:
        assert main([*common, *overrides]) == 0
