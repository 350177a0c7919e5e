"""Two processes against one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import Points, net
from tests.training.ddp_worker import RECIPES, RUNS, SHARDED, train
from withstand.errors import BadInput
from withstand.training import Trainer
from withstand.training.loop import Advance
from withstand.training.recipe import System
from withstand.training.sharding import _blocks, shard


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


@pytest.mark.parametrize(("name", "sync"), RUNS)
def test_two_processes_learn_what_one_learns_from_the_joint_batch(folder, name, sync):
    one = train(name, sync_norm=sync).last.state_dict()
    ranks = [torch.load(folder / f"{name}{sync}.{rank}.pt") for rank in range(2)]
    for key, expected in one.items():
        assert torch.equal(ranks[0][key], ranks[1][key])
        torch.testing.assert_close(ranks[0][key], expected, rtol=1e-4, atol=1e-5, msg=key)


def test_only_the_first_process_writes_and_both_know_the_history(folder):
    histories = [json.loads((folder / f"history.{rank}.json").read_text()) for rank in range(2)]
    assert histories[0] == histories[1]  # what selects, and the mean loss
    lines = (folder / "standardFalse" / "history.csv").read_text().splitlines()
    assert len(lines) == 3


@pytest.mark.parametrize("name", SHARDED)
def test_spread_weights_learn_what_whole_ones_learn_and_come_back_after_a_kill(folder, name):
    one = train(name, **SHARDED[name]).last.state_dict()
    ranks = [torch.load(folder / f"fsdp {name}.{rank}.pt") for rank in range(2)]
    again = torch.load(folder / f"fsdp {name} again.0.pt")
    for key, expected in one.items():
        assert torch.equal(ranks[0][key], ranks[1][key])
        torch.testing.assert_close(ranks[0][key], expected, rtol=1e-4, atol=1e-5, msg=key)
        assert torch.equal(ranks[0][key], again[key])


def test_recipes_that_need_whole_gradients_refuse_spread_weights():
    with pytest.raises(BadInput, match="ddp"):
        Trainer(epochs=1, strategy="fsdp", accelerator="cpu").fit(RECIPES["awp"], net(), Points())


def test_models_with_single_numbers_refuse_spread_weights():
    model = net()
    model.register_parameter("scale", torch.nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(BadInput, match=r"model\.scale is a single number"):
        shard(Advance(System(model)), None)


def test_large_blocks_are_spread_one_by_one_and_norms_stay_with_what_is_around_them():
    block = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
    model = torch.nn.Sequential(block, torch.nn.ModuleList([torch.nn.Linear(8, 8)]), torch.nn.Linear(8, 1, bias=False))
    assert _blocks(model, 2 * 8 * 9 + 16 + 8) == [block[0], block, model[1][0], model[2]]


TRAINING = "harden zoo:digits_bn_cnn --data digits --limit 200 --recipe standard --epochs 2 --batch 64"
COMMAND = [
    "from withstand.cli.main import run; run()",
    *[*TRAINING.split(), "--accelerator", "cpu", "--sync-norm", "--optimizer", "sgd(0.05)"],
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, "-c", *COMMAND, "--out", str(out)], check=True, capture_output=True)
    return load_file(out / "last.safetensors")


@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
def test_two_machines_learn_what_one_learns(alone, tmp_path, launcher):
    """Each process is a node of its own, as far as it can tell."""
    port = str(free_port())
    many = [*COMMAND, "--nodes", "2", "--strategy", "ddp", "--out", str(tmp_path / "two")]
    processes = []
    for node in range(2):
        if launcher == "torchrun":
            told = {"RANK": node, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "GROUP_RANK": node, "LOCAL_WORLD_SIZE": 1}
            told |= {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        else:
            told = {"SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 1, "SLURM_NNODES": 2, "SLURM_PROCID": node}
            told |= {"SLURM_LOCALID": 0, "SLURM_NODEID": node, "SLURM_JOB_ID": 7, "SLURM_JOB_NAME": "train"}
            told |= {"SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in told.items()}
        command = [sys.executable, "-c", *many]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    said = [p.communicate(timeout=120)[0].decode() for p in processes]
    assert all(p.returncode == 0 for p in processes), said
    two = load_file(tmp_path / "two" / "last.safetensors")
    for key, expected in alone.items():
        torch.testing.assert_close(two[key], expected, rtol=1e-4, atol=1e-5, msg=key)
