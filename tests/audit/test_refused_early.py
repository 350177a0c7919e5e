"""What was fitted, given where it does not belong: refused before a folder for the work appears."""

from pathlib import Path

import pytest
import torch
from torch import nn

import withstand as ws
from tests.attacks.fitted import generator
from withstand.attacks.neighbours.block import KNNBlock
from withstand.audit.craft import craft
from withstand.audit.transfer import transfer
from withstand.data import from_arrays
from withstand.errors import BadInput
from withstand.models.artefact import keep_part
from withstand.models.retrieval import ImageIndex
from withstand.protocols import Space
from withstand.registry import parse
from withstand.training.checkpoints import save_weights


@pytest.fixture(scope="module")
def digits():
    return ws.load_data("digits", split="test", limit=6)


@pytest.fixture(scope="module")
def net():
    return ws.load_model("zoo:digits_cnn", pretrained=False)


@pytest.fixture
def block(tmp_path):
    save_weights(tmp_path / "last.safetensors", KNNBlock(10, [4]))
    recipe = parse("knn_block()", "recipe")
    keep_part(tmp_path, "block", Space((1, 8, 8), (0.0, 1.0), 10), "b", "last.safetensors", recipe, {})
    return f"artefact:{tmp_path}"


def refused(work, tmp_path: Path, says: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(BadInput, match=says):
        work(out)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("out")]


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        ("generated(generator='{block}')", "holds a block"),
        ("gpga(guide='{generator}')", "holds a generator"),
        ("targeted_generated(generator='{generator}')", "none for this generator"),
        ("generated(generator='{ten}')", "a class from 0 to 9"),
        ("targeted_generated(generator='{three}')", "one for 3 classes"),
        ("targeted_generated(generator='{three}', target=7)", "classes from 0 to 2"),
    ],
)
def test_by_a_command_that_writes_examples(attack, says, digits, net, block, tmp_path):
    text = attack.format(block=block, generator=generator(), ten=generator(10), three=generator(3))
    (tmp_path / "here").mkdir()
    refused(lambda out: craft(net, digits, text, out), tmp_path / "here", says)


def test_a_generator_of_other_channels(tmp_path):
    colour = from_arrays(torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.long), classes=10)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    text = f"generated(generator='{generator()}')"
    refused(lambda out: craft(model, colour, text, out), tmp_path, r"images \[N, 1, H, W\]")


def test_a_generator_as_a_surrogate_and_a_block_among_the_attacks(digits, net, block, tmp_path):
    (tmp_path / "here").mkdir()
    refused(lambda out: craft(generator(), digits, "mi", out), tmp_path / "here", "holds a generator")
    refused(lambda out: transfer(generator(), net, digits, ["mi"], out=out), tmp_path / "here", "holds a generator")
    attacks = ["mi", f"generated(generator='{block}')"]
    refused(lambda out: transfer(net, net, digits, attacks, out=out), tmp_path / "here", "holds a block")


def test_a_generator_as_the_substitute_of_an_engine(tmp_path):
    x = torch.rand(12, 1, 8, 8)
    engine = ImageIndex(nn.Flatten(), x, k=3)
    data = from_arrays(x[:3], None)
    refused(lambda out: craft(engine, data, f"qair(substitute='{generator()}')", out), tmp_path, "holds a generator")
    wide = nn.Sequential(nn.Flatten(), nn.Linear(100, 4))
    attack = ws.attacks.QAIR(ws.Linf(0.1), queries=5, substitute=wide)
    refused(lambda out: craft(engine, data, attack, out), tmp_path, "fails on images of 1x8x8")
