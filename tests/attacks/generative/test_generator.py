import math

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


@pytest.mark.parametrize("output", ["image", "residual"])
def test_the_output_is_half_of_one_plus_tanh_or_the_image_plus_reach_times_tanh(output):
    net, x = Generator(1, ngf=4, blocks=1, output=output, reach=0.2).eval(), torch.rand(2, 1, 8, 8)
    net.layers[-1].weight.data.zero_()
    net.layers[-1].bias.data.fill_(0.7)
    tanh = (math.exp(1.4) - 1) / (math.exp(1.4) + 1)
    wanted = torch.full_like(x, (tanh + 1) / 2) if output == "image" else x + 0.2 * tanh
    assert torch.allclose(net(x), wanted, atol=1e-6)


def test_a_block_keeps_what_it_is_given_and_adds_two_convolutions():
    net = Generator(1, ngf=1, blocks=1)
    block = next(m for m in net.layers if any(isinstance(part, nn.Dropout) for part in m.modules())).eval()
    (first, second), x = (m for m in block.modules() if isinstance(m, nn.Conv2d)), torch.rand(2, 4, 6, 6) - 0.5
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm, (weight, bias) in zip(norms, ((2.0, -0.3), (0.5, 0.1))):
        norm.weight.data.fill_(weight)
        norm.bias.data.fill_(bias)

    def conv(h, layer):
        return nn.functional.conv2d(nn.functional.pad(h, (1, 1, 1, 1), mode="reflect"), layer.weight)

    scale = (1 + 1e-5) ** -0.5  # of running statistics that have seen nothing
    h = (2.0 * scale * conv(x, first) - 0.3).clamp_min(0)
    assert torch.allclose(block(x), x + 0.5 * scale * conv(h, second) + 0.1, atol=1e-6)
    block.train()
    second.weight.data.zero_()
    norms[1].weight.data.fill_(1.0)
    norms[1].bias.data.zero_()
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(("settings", "share"), [({}, 0.5), ({"dropout": 0.2}, 0.2)])
def test_half_of_a_block_is_dropped_while_it_trains(settings, share):
    layer = next(m for m in Generator(1, ngf=4, blocks=1, **settings).modules() if isinstance(m, nn.Dropout))
    kept = layer(torch.ones(10_000))
    assert float((kept == 0).float().mean()) == pytest.approx(share, abs=0.03)
    assert float(kept.max()) == pytest.approx(1 / (1 - share))


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
