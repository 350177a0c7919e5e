"""Running the command line as a user would, in this process: exit code, stdout, stderr."""

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from withstand.cli.main import run

NETWORK = """
import os, time
import torch
from torch import nn

class Slow(nn.Module):
    '''Takes its time where SLOW says how many seconds a pass takes.'''

    def forward(self, x):
        time.sleep(float(os.environ.get("SLOW", 0)))
        return x

def centres():
    '''Nearest class centre of the digits, as a linear layer: right on nine of ten.'''
    from sklearn.datasets import load_digits
    found = load_digits()
    x, y = torch.tensor(found.images / 16, dtype=torch.float32).flatten(1), torch.tensor(found.target)
    layer = nn.Linear(64, 10)
    with torch.no_grad():
        c = torch.stack([x[y == k].mean(0) for k in range(10)])
        layer.weight.copy_(20 * c)
        layer.bias.copy_(-10 * (c * c).sum(1))
    return nn.Sequential(nn.Flatten(), layer)

def slow_centres():
    return nn.Sequential(Slow(), *centres())

def guess():
    '''An untrained layer.'''
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def wrong_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))

def series():
    '''For two channels of twelve steps.'''
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(24, 3))

def not_a_model():
    return 3
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A working directory with net.py in it."""
    (tmp_path / "net.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def withstand(home, capsys, monkeypatch):
    """Call it with the arguments of the command line."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["withstand", *map(str, arguments)])
        capsys.readouterr()
        threads = torch.get_num_threads()
        try:
            run()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        torch.set_num_threads(threads)
        return Done(code, *capsys.readouterr())

    return call
