import subprocess
import sys

import pytest
import torch
from torch import nn

import withstand as ws
from withstand.errors import BadInput
from withstand.models.zoo import table


@pytest.mark.parametrize("entry", table.ZOO, ids=lambda e: e.name)
def test_every_network_takes_its_input_and_returns_its_classes(entry):
    for classes in (None, 7):
        model = entry.build(classes).eval()
        assert model(torch.rand(2, *entry.shape)).shape == (2, classes or 10)


def test_depths_and_sizes_are_those_of_the_papers():
    def layers(name):
        return sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in table.find(name).build().modules())

    def parameters(name):
        return sum(p.numel() for p in table.find(name).build().parameters())

    for depth in (20, 32, 44, 56, 110):
        assert layers(f"cifar_resnet{depth}") == depth
    # He et al. 2016, table 6, in millions
    for depth, millions in ((20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)):
        assert parameters(f"cifar_resnet{depth}") / 1e6 == pytest.approx(millions, abs=0.03 if depth == 110 else 0.006)


def test_a_growing_block_pads_its_shortcut_with_zeros():
    model = table.find("cifar-resnet20").build().eval()
    block = model.layer2[0]
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 16, 32, 32)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].abs().sum() == out[:, 24:].abs().sum() == 0


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(BadInput, match=r"zoo model: there is no 'cifar_resnet21'. Did you mean .*cifar_resnet20"):
        table.find("cifar_resnet21")


def test_the_table_imports_nothing_heavy():
    code = "import sys, withstand.models.zoo.table; print({'torch', 'numpy', 'timm', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


PUBLISHED = {  # file: network, how many of the first 300 images of the test file it gets right
    "cifar10_resnet20": ("cifar_resnet20", 272),
    "cifar10_resnet32": ("cifar_resnet32", 278),
    "cifar10_resnet56": ("cifar_resnet56", 279),
    "cifar10_lenet": ("lenet", 173),
    "cifar10_cnn_a_adv2": ("cnn_a", 202),
    "cifar10_cnn_a_adv4": ("cnn_a", 173),
    "cifar10_cnn_a_mix4": ("cnn_a", 213),
    "cifar10_resnet2b_adv": ("cifar_resnet2b", 203),
    "cifar10_resnet4b_adv": ("cifar_resnet4b", 232),
    "cifar10_wrn16_1_badnet": ("wrn16_1", 252),
    "mnist_cnn_a_adv": ("cnn_a_mnist", 292),
    "mnist_cnn_pgd": ("cnn_a_mnist", 299),
}


@pytest.mark.data
@pytest.mark.parametrize("file", PUBLISHED)
def test_published_weights_load_and_classify(data_root, file):
    network, _ = PUBLISHED[file]
    path = data_root / "weights" / f"{file}.pth"
    if not path.is_file():
        pytest.skip(f"no {path}")
    target = ws.load_model(f"zoo:{network}", weights=path)
    batch = ws.load_data("mnist" if "mnist" in file else "cifar10", data_root, limit=300).batch(range(300))
    with torch.no_grad():
        right = (target(batch.x).argmax(1) == batch.y).sum().item()
    assert abs(right - PUBLISHED[file][1]) <= 1  # a tie may fall otherwise on another machine
