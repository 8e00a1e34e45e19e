"""`loongforge launch`: what it prints, and that this runs: Slurm's and Kubernetes' parts played by small scripts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from loongforge.cli.main import main
from loongforge.training.launcher import reserved_port
from tests.training.recipes import QUICK, steps_of

STEPS = 20


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from loongforge.data.builtin import build

    return build("digits_vqa", tmp_path_factory.mktemp("data") / "digits_vqa")


def _words(kind: str, port: int, data_dir: Path, run_dir: Path, *more: str) -> list[str]:
    cluster = [f"cluster={kind}", "cluster.nodes=2", "cluster.processes_per_node=1", f"cluster.port={port}"]
    cluster += [f"cluster.python={sys.executable}", "cluster.profile=null"]
    run = ["trainer.eval_samples=8", f"trainer.steps={STEPS}", f"data.dir={data_dir}", f"run.dir={run_dir}", *QUICK[1:]]
    return ["launch", "+recipe=llava_sft", *cluster, *run, *more]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """The uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    words = [word for word in _words("torchrun", 2000, data_dir, run_dir)[1:] if not word.startswith("cluster")]
    subprocess.run([sys.executable, "-m", "loongforge", "train", *words], check=True, capture_output=True, timeout=120)
    return run_dir


def _losses(run_dir: Path) -> dict[int, float]:
    return {step["step"]: step["loss"] for step in steps_of(run_dir)}


@contextmanager
def _two_ports() -> Iterator[int]:
    """Two free ports in a row, the first."""
    with reserved_port() as port:
        yield port - port % 2  # held loosely: torchrun itself binds them


def _fake(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.timeout(180)
def test_slurms_batch_script_trains(data_dir: Path, one_process: Path, tmp_path: Path) -> None:
    """`sbatch` runs the script, `srun` its command once for each of two nodes, which are both this machine."""
    _fake(tmp_path / "bin", "sbatch", "exec bash -s")
    _fake(tmp_path / "bin", "scontrol", "echo localhost; echo elsewhere")
    _fake(tmp_path / "bin", "srun", '"${@:2}" & first=$!\n"${@:2}" || exit 1\nwait $first')
    environ = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[0-1]"}
    with _two_ports() as port:
        words = _words("slurm", port, data_dir, tmp_path / "run")
        done = subprocess.run(
            [sys.executable, "-m", "loongforge", *words], env=environ, capture_output=True, text=True, timeout=170
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "preflight: fit to run" in done.stdout
    assert _losses(tmp_path / "run") == pytest.approx(_losses(one_process), abs=2e-5)


@pytest.mark.timeout(240)
def test_a_lost_node_comes_back_and_the_run_goes_on(data_dir: Path, one_process: Path, tmp_path: Path) -> None:
    """kill -9 of one of two agents with its rank; the same command again: from the latest checkpoint to the end."""
    run_dir = tmp_path / "run"
    with _two_ports() as port:
        words = _words("torchrun", port, data_dir, run_dir, "cluster.endpoint=localhost", "checkpoint.every=2")
        words += [
            "cluster.preflight=false",
        ]
        nodes = [_node(words, tmp_path / "node0.log")]
        _until(lambda: _listens(port), 30)  # it holds the rendezvous: a cluster that loses it starts anew
        nodes.append(_node(words, tmp_path / "node1.log"))
        try:
            _until(lambda: (run_dir / "checkpoints" / "step_00000004").is_dir(), 90)
            _power_off(nodes[1])
            nodes[1] = _node(words, tmp_path / "node1_again.log")
            codes = [node.wait(timeout=120) for node in nodes]
        finally:
            for node in nodes:
                _power_off(node)
    logs = "\n".join(file.read_text()[-3000:] for file in sorted(tmp_path.glob("*.log")))
    assert codes == [0, 0], logs
    assert _losses(run_dir) == pytest.approx(_losses(one_process), abs=2e-5)


def _node(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        command = [sys.executable, "-m", "loongforge", *words]
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _power_off(node: subprocess.Popen[bytes]) -> None:
    """Ends all processes of a node at once; torchrun's ranks have sessions of their own."""
    if node.poll() is None:
        here = psutil.Process(node.pid)
        for process in [*here.children(recursive=True), here]:
            process.kill()
        node.wait()


def _until(condition: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def _dry(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["launch", "+recipe=llava_sft", *words, "--dry-run"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", ["pytorchjob", "jobset"])
def test_manifests_are_whole(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    image = "cluster.kubernetes.image=registry.example/loongforge:1"
    claim = "cluster.kubernetes.claim=data"
    manifest = yaml.safe_load(_dry(capsys, f"cluster={kind}", "cluster.nodes=3", image, claim))
    pods, numbers = _pods(manifest)
    assert sum(numbers) == 3
    for pod in pods:
        container = pod["containers"][0]
        assert container["image"] == "registry.example/loongforge:1"
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/dev/shm", "/shared"}
        assert "--nnodes=3" in container["command"][2]
        checked = subprocess.run(["bash", "-n", "-c", container["command"][2]], capture_output=True)
        assert checked.returncode == 0, checked.stderr


def _pods(manifest: dict) -> tuple[list[dict], list[int]]:
    spec = manifest["spec"]
    if manifest["kind"] == "JobSet":
        indexed = spec["replicatedJobs"][0]["template"]["spec"]
        return [indexed["template"]["spec"]], [indexed["parallelism"]]
    replicas = spec["pytorchReplicaSpecs"].values()
    return [replica["template"]["spec"] for replica in replicas], [replica["replicas"] for replica in replicas]


def test_the_users_overrides_arrive_as_given(capsys: pytest.CaptureFixture[str]) -> None:
    """Quotes, spaces and shell characters of an override are not the shell's to read."""
    wanted = "data.image_dir='/a b/$HOME`x`'"
    text = _dry(capsys, "cluster=torchrun", "cluster.python=echo", "cluster.preflight=false", wanted)
    printed = subprocess.run(["bash", "-s"], input=text.encode(), capture_output=True, check=True).stdout.decode()
    assert wanted in printed
    assert "cluster" not in printed.replace("--", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no cluster given"),
        (["cluster=torchrun", "cluster.nodes=2", "run.dir=x"], "cluster.endpoint is missing"),
        (["cluster=torchrun", "cluster.nodes=2", "cluster.endpoint=a"], "run.dir is missing"),
        (["cluster=slurm", "cluster.profile=cude"], "Did you mean 'cuda'"),
        (["cluster=slrm"], "slurm"),
        (["cluster=slurm_kunlun", "cluster.env={XPU_RUN_MODE: '1'}"], "XPU_RUN_MODE=1: writes hardware registers"),
    ],
)
def test_what_is_wrong_is_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "+recipe=llava_sft", *words, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_preflight_sees_nodes_that_differ() -> None:
    from loongforge.cluster.preflight import Node, problems

    fit = Node(0, "a", "cuda", {"torch": "2.9"}, 8, 8, True, 0.1, True)
    wrong = Node(8, "b", "cpu", {"torch": "2.8"}, 1, 8, False, 0.1, False)
    crowded = Node(16, "c", "cuda", {"torch": "2.9"}, 4, 8, True, 0.1, True)
    assert not problems([fit, fit], "r")
    found = "\n".join(problems([fit, wrong, crowded], "r"))
    for part in ("came out wrong", "shared file system", "backend cpu", "torch 2.8", "8 ranks for 4 devices"):
        assert part in found
    assert json.dumps(found)
