import pytest
import torch
from torch import nn

from withstand.models.layers import WSConv2d
from withstand.models.zoo import table
from withstand.models.zoo.resnet import NFResNet, ResNet
from withstand.models.zoo.small import cnn_28
from withstand.models.zoo.vit import vit
from withstand.models.zoo.wide_resnet import WideResNet


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "millions", "digits"),
    [
        ("wrn_28_2", 1.5, 1),  # Oliver et al. 2018, arXiv 1804.09170, whose test bed FixMatch takes
        ("wrn_28_10", 36.5, 1),  # Zagoruyko and Komodakis 2016, table 4
        ("wrn_34_10", 46.2, 1),  # the size that model cards of adversarial training state
        ("resnet18", 11.17, 2),  # the usual CIFAR form; ImageNet's 11.69 M with another stem and 1000 classes
        ("preact_resnet18", 11.17, 2),
    ],
)
def test_sizes_are_the_published_ones(name, millions, digits):
    with torch.device("meta"):
        assert round(size(table.find(name).build()) / 1e6, digits) == millions


def test_the_small_network_has_the_size_of_its_table():
    # Carlini and Wagner 2017, table 1: four 3x3 convolutions, then 200, 200 and 10 units
    assert size(cnn_28()) == 320 + 9_248 + 18_496 + 36_928 + 205_000 + 40_200 + 2_010


@pytest.mark.parametrize(("dim", "heads", "millions"), [(192, 3, 5.7), (384, 6, 22.1)])
def test_transformers_in_imagenet_form_have_the_published_size(dim, heads, millions):
    with torch.device("meta"):  # Touvron et al. 2021, table 1, which rounds 22.05 to 22
        assert size(vit(dim, heads, side=224, patch=16, classes=1000)) / 1e6 == pytest.approx(millions, abs=0.05)
        small = vit(dim, heads)
    assert small.patch_embed.num_patches == 64


@pytest.mark.parametrize(
    "build", [ResNet, NFResNet, lambda **o: WideResNet(10, 1, **o), lambda **o: vit(24, 3, depth=1, **o)]
)
def test_other_channels_and_classes(build):
    assert build(channels=1, classes=7).eval()(torch.rand(2, 1, 32, 32)).shape == (2, 7)


def test_betas_undo_the_expected_growth():
    betas = [block.beta for block in NFResNet((3, 4, 6, 3)).layers]
    # 1 / sqrt(v) by hand: a stage of k blocks ends at v = 1 + 0.04 k
    assert [betas[i] for i in (0, 3, 7, 13)] == pytest.approx([1, 0.944911, 0.928477, 0.898027], abs=1e-6)
    assert [betas[i] for i in (1, 4, 8, 14)] == pytest.approx([0.980581] * 4, abs=1e-6)
    assert betas[2] == pytest.approx(0.962250, abs=1e-6)


def test_a_normaliser_free_network_takes_odd_sides():
    with torch.no_grad():
        assert NFResNet(blocks=(1, 1, 1, 1), width=8, channels=1)(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_a_normaliser_free_network_starts_without_its_residual_branches_and_keeps_its_variance():
    torch.manual_seed(0)
    model = NFResNet((2, 2, 2, 2))
    assert not any(isinstance(m, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm) for m in model.modules())
    assert sum(isinstance(m, WSConv2d) for m in model.modules()) == 1 + 16 + 4
    x = torch.rand(2, 3, 32, 32)
    before = model(x)
    for block in model.layers:
        nn.init.normal_(block.conv2.gain)
    assert torch.equal(model(x), before)
    block = model.layers[1]
    nn.init.ones_(block.conv2.gain)
    nn.init.ones_(block.strength)
    with torch.no_grad():  # padding takes a little of the variance at the border
        grown = block(torch.randn(64, 64, 8, 8) * 1.04**0.5)
    assert grown.var().item() == pytest.approx(1.04 + 0.04, abs=0.05)
