import pytest
import torch
from torch import nn

from withstand.attacks.generative import Generator
from withstand.errors import BadInput


def test_it_has_the_weights_of_the_published_network():
    assert sum(p.numel() for p in Generator(3).parameters()) == 7_841_411


@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 28), (12, 20), (5, 5), (30, 33)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_back_in_their_size_and_range(height, width, channels):
    made = Generator(channels, ngf=4, blocks=1)(torch.rand(3, channels, height, width))
    assert made.shape == (3, channels, height, width)
    assert float(made.detach().min()) >= 0
    assert float(made.detach().max()) <= 1


def test_what_does_not_divide_by_four_is_reflected_and_cut():
    net = Generator(1, ngf=4, blocks=1).eval()
    x = torch.rand(2, 1, 10, 11)
    padded = nn.functional.pad(x, (0, 1, 0, 2), mode="reflect")
    assert torch.equal(net(x), net(padded)[..., :10, :11])


def test_a_residual_is_added_within_its_reach():
    net = Generator(1, ngf=4, blocks=1, output="residual", reach=0.2)
    for p in net.parameters():
        p.data.mul_(20)
    x = torch.rand(4, 1, 8, 8)
    moved = (net(x) - x).abs().max()
    assert 0.1 < moved <= 0.2 + 1e-6
    net.layers[-1].weight.data.zero_()
    net.layers[-1].bias.data.zero_()
    assert torch.equal(net(x), x)


def test_dropout_and_batch_statistics_end_with_training():
    net, x = Generator(1, ngf=4, blocks=1), torch.rand(4, 1, 8, 8)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    assert torch.allclose(net(x)[:2], net(x[:2]), atol=1e-6)


def test_a_class_reaches_the_first_layer_as_one_plane_of_ones():
    net = Generator(1, ngf=4, blocks=0, classes=3).eval()
    seen = []
    net.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.rand(3, 1, 8, 8)
    net(x, torch.tensor([2, 0, 1]))
    assert torch.equal(seen[0][:, :1], x)
    assert torch.equal(seen[0][:, 1:].mean((2, 3)), torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]))
    assert not torch.equal(net(x, torch.tensor([0, 0, 0])), net(x, torch.tensor([1, 1, 1])))


@pytest.mark.parametrize(
    ("classes", "x", "target", "said"),
    [
        (0, torch.rand(2, 3, 8, 8), None, "1, H, W"),
        (0, torch.rand(2, 8, 8), None, "1, H, W"),
        (0, torch.rand(2, 1, 4, 8), None, "5 pixels"),
        (0, torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), "aims at no class"),
        (3, torch.rand(2, 1, 8, 8), None, "0 to 2"),
        (3, torch.rand(2, 1, 8, 8), torch.tensor([0, 3]), "0 to 2"),
        (3, torch.rand(2, 1, 8, 8), torch.tensor([-1, 0]), "0 to 2"),
    ],
)
def test_what_does_not_fit_is_refused(classes, x, target, said):
    with pytest.raises(BadInput, match=said):
        Generator(1, ngf=4, blocks=0, classes=classes)(x, target)
