"""Two processes against one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.ddp_worker import RECIPES, train


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("ddp")
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(["src", ".", os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
        "-m",
        "tests.training.ddp_worker",
        str(out),
    ]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_learn_what_one_learns_from_the_joint_batch(folder, name, sync):
    one = train(name, sync_norm=sync).last.state_dict()
    ranks = [torch.load(folder / f"{name}{sync}.{rank}.pt") for rank in range(2)]
    for key, expected in one.items():
        assert torch.equal(ranks[0][key], ranks[1][key])
        torch.testing.assert_close(ranks[0][key], expected, rtol=1e-4, atol=1e-5, msg=key)


def test_only_the_first_process_writes_and_both_know_the_history(folder):
    histories = [json.loads((folder / f"history.{rank}.json").read_text()) for rank in range(2)]
    assert histories[0] == histories[1]  # accuracies, and the mean loss
    lines = (folder / "standardFalse" / "history.csv").read_text().splitlines()
    assert len(lines) == 3
