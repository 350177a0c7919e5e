"""Two processes with half of the rows each equal one process with all of them; run as a script, this is one of the two."""

import os
import subprocess
import sys

import pytest
import torch
from torch import distributed, nn

from withstand.models.layers import add_branches, route

NAMES = ["main", "adversarial", "patch"]
SPREADS = {  # branch of each row; the first 4 rows belong to rank 0
    "even": [0, 0, 1, 1, 0, 1, 0, 1],
    "uneven": [0, 0, 0, 1, 1, 0, 1, 1],
    "a rank without": [0, 0, 0, 0, 1, 1, 0, 1],
    "disjoint": [1, 1, 1, 1, 2, 2, 2, 2],
    "one row on a rank": [0, 1, 0, 0, 1, 0, 1, 0],
}


def setting(momentum):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=momentum), nn.Tanh(), nn.Linear(4, 2)).double()
    return add_branches(model, NAMES, sync=True), torch.randn(8, 3, dtype=torch.float64) * 3 + 2


def step(model, run, x, ids, rows):
    x = x[rows].requires_grad_()
    with route(model, ids[rows]):
        out = run(x)
    loss = out.square().mean()
    loss.backward()
    return {"loss": loss.detach(), "x": x.grad} | {n: p.grad for n, p in model.named_parameters()}


def member(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {}
    for spread, ids in SPREADS.items():
        for momentum in (0.1, None):
            model, x = setting(momentum)
            wrapped = nn.parallel.DistributedDataParallel(model)
            got = step(model, wrapped, x, torch.tensor(ids), slice(4 * rank, 4 * rank + 4))
            results[spread, momentum] = (got, dict(model.named_buffers()))
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    members = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=os.environ) for rank in (0, 1)]
    try:
        assert [m.wait(120) for m in members] == [0, 0]
    finally:
        for m in members:
            m.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("spread", SPREADS)
def test_two_processes_equal_one_with_the_joint_batch(two_processes, spread, momentum):
    (first, buffers0), (second, buffers1) = (results[spread, momentum] for results in two_processes)
    model, x = setting(momentum)
    joint = step(model, model, x, torch.tensor(SPREADS[spread]), slice(None))
    assert torch.allclose((first["loss"] + second["loss"]) / 2, joint["loss"], rtol=1e-12)
    assert torch.allclose(torch.cat([first["x"], second["x"]]) / 2, joint["x"], rtol=1e-9, atol=1e-12)
    for name, _p in model.named_parameters():
        assert torch.allclose(first[name], second[name], rtol=1e-12)
        assert torch.allclose(first[name], joint[name], rtol=1e-9, atol=1e-12), name
    for name, b in model.named_buffers():
        assert torch.allclose(buffers0[name], b, rtol=1e-12), name
        assert torch.equal(buffers0[name], buffers1[name]), name


if __name__ == "__main__":
    member(int(sys.argv[1]), sys.argv[2])
