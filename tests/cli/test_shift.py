"""`withstand shift` as a user runs it."""

import json

import numpy as np
import pytest

from tests.data.shift.trees import tree
from withstand.data.shift.classes import IMAGENET_A

NETS = """
import torch
from torch import nn
from withstand.protocols import Space

def imagenet():
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 1000))
    return model

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
"""


@pytest.fixture
def here(home):
    (home / "nets.py").write_text(NETS)
    return home


def test_a_part_of_a_benchmark_is_refused_then_scored_then_continued(here, withstand):
    tree(here / "data" / "imagenet-a", IMAGENET_A[:3], 2, side=20)
    asked = ["shift", "imagenet-a", "--root", "data", "--model", "m=nets.py:imagenet", "--size", 16]
    done = withstand(*asked)
    assert done.code == 2
    assert "197 of 200 classes have no images" in done.err
    assert "--partial" in done.err
    assert not (here / "runs").exists()
    done = withstand(*asked, "--partial")
    assert done.code == 0
    assert "imagenet-a (subset-6)" in done.out
    assert "published: ResNet-50" in done.out
    assert "runs/shift-m-imagenet-a/shift.json" in done.err
    again = withstand(*asked, "--partial", "--format", "json")
    assert "0 of 6 images to go" in again.err
    assert json.loads(again.out)["results"][0]["n"] == 6
    assert "# Shift benchmarks" in withstand(*asked, "--partial", "--format", "markdown").out


def test_requirements_decide_the_exit_code(here, withstand):
    tree(here / "data" / "imagenet-a", IMAGENET_A[:3], 2, side=20)
    asked = ["shift", "imagenet-a", "--root", "data", "--model", "m=nets.py:imagenet", "--size", 16, "--partial"]
    assert withstand(*asked, "--fail-under", "imagenet-a=0").code == 0
    failed = withstand(*asked, "--fail-under", "imagenet-a=1.0")
    assert failed.code == 1
    assert "wanted >= 1" in failed.err
    early = withstand(*asked, "--fail-under", "imagenet-r=1.0", "--out", "never")
    assert early.code == 2
    assert "This run has imagenet-a" in early.err
    assert not (here / "never").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["imagenet-x", "--root", ".", "--model", "m=nets.py:imagenet"], "Did you mean imagenet-"),
        (["imagenet-a", "--root", ".", "--model", "m=nets.py:imagenet"], "looked for"),
        (["imagenet-a", "--root", "nowhere", "--model", "m=nets.py:imagenet"], "root: got nowhere"),
        (["imagenet-a", "--root", "data", "--model", "m=nets.py:small", "--partial"], "fails on inputs"),
        (["imagenet-a", "--root", "data", "--model", "m=nets.py:imagenet", "--format", "junit"], "--format: got junit"),
        (["make", "cifar-c", "--from", "digits", "--out", "o"], "Did you mean cifar10-c"),
        (["make", "cifar10-c", "--from", "digits", "--out", "o"], "32 x 32"),
    ],
)
def test_mistakes_are_told_without_a_traceback(here, withstand, arguments, said):
    tree(here / "data" / "imagenet-a", IMAGENET_A[:1], 1, side=20)
    done = withstand("shift", *arguments)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_set_is_made_and_scored(here, withstand):
    x = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    np.savez(here / "thumbs.npz", x=x, y=np.array([0, 1, 2, 9]))
    made = withstand("shift", "make", "cifar10-c", "--from", "thumbs.npz", "--out", "CIFAR-10-C", "--kinds", "fog,snow")
    assert made.code == 0
    assert "2 corruptions at 5 severities" in made.err
    asked = ["shift", "cifar10-c", "--root", ".", "--model", "m=nets.py:small", "--partial"]
    scored = withstand(*asked, "--format", "json")
    assert len(json.loads(scored.out)["cells"]) == 10
    assert "made by withstand" in withstand(*asked).err


def test_the_benchmarks_are_listed(here, withstand):
    assert "imagenet-sketch" in withstand("list", "benchmarks").out
    assert "evaluate" in withstand("shift", "--help").out


def test_a_robustbench_record_is_printed(here, withstand):
    asked = ["shift", "robustbench", "net.py:centres", "--data", "digits", "--limit", 6, "--out", "rb"]
    own = ["--about", "additional_data=false", "--about", "number_forward_passes=2"]
    done = withstand(*asked, "--about", "venue=here", *own)
    assert done.code == 0
    record = json.loads(done.out)
    assert (record["n_examples"], record["venue"]) == (6, "here")
    assert (record["additional_data"], record["number_forward_passes"]) == (False, 2)
    assert withstand(*asked, "--about", "additional_data=maybe").code == 2
    assert withstand(*asked, "--about", "number_forward_passes=0").code == 2
    assert withstand(*asked, "--about", "here").code == 2
