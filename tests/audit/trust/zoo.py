"""Defences that are broken on purpose: each hides a weakness from attacks, none removes it."""

import functools
import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from withstand.training.basic import fit

RADIUS = 0.15


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and y to train on, x and y to test on: scikit-learn's 8x8 digits, in a fixed order."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = torch.tensor(data.images[order] / 16, dtype=torch.float32)[:, None]
    y = torch.tensor(data.target[order])
    return x[:1300], y[:1300], x[1300:], y[1300:]


class WinnersTakeAll(nn.Module):
    """The largest tenth of all activations stays, the rest is set to zero.

    Xiao, Zhong, Zheng, "Enhancing Adversarial Defense by k-Winners-Take-All", 2020, arXiv 1905.10510.
    """

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, flat.shape[1] // 10), dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, 0.0).reshape(x.shape)


def cnn(seed: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            activation(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            activation(),
            nn.Flatten(),
            nn.Linear(512, 64),
            activation(),
            nn.Linear(64, 10),
        )


@functools.cache
def plain(seed: int = 0, epochs: int = 10) -> nn.Module:
    """An ordinary network."""
    x, y, *_ = digits()
    return fit(cnn(seed), (x, y), epochs, seed=seed)


@functools.cache
def hardened(seed: int = 0, epochs: int = 10) -> nn.Module:
    """A network trained on PGD's points."""
    x, y, *_ = digits()
    return fit(cnn(seed), (x, y), epochs, f"pgd(linf({RADIUS}), steps=5)", seed=seed, lr=2e-3)


@functools.cache
def winners(seed: int = 0) -> nn.Module:
    x, y, *_ = digits()
    return fit(cnn(seed, WinnersTakeAll), (x, y), 10, seed=seed)


class Before(nn.Module):
    """A step in front of a network."""

    def __init__(self, step: Callable[[Tensor], Tensor], model: nn.Module) -> None:
        super().__init__()
        self.step, self.model = step, model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.step(x))


class After(Before):
    """A step behind a network."""

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self.model(x))


def quantise(x: Tensor) -> Tensor:
    """Seven grey levels."""
    return (x * 6).round() / 6


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, step):
        return step(x)

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0], None


def straight_through(step: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The step, with the gradient of the identity."""
    return lambda x: _Through.apply(x, step)  # type: ignore[return-value]


def jpeg(x: Tensor) -> Tensor:
    """Through a JPEG file of quality 50, enlarged fourfold so that its 8x8 blocks mean something; no gradient."""
    big = F.interpolate(x.detach(), scale_factor=4)
    images = []
    for image in (big[:, 0] * 255).round().byte().cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=50)
        images.append(np.asarray(Image.open(file), dtype=np.float32) / 255)
    return F.avg_pool2d(torch.from_numpy(np.stack(images))[:, None].to(x.device), 4)


def resize(x: Tensor) -> Tensor:
    """To a random size between 6 and 11, and back."""
    side = int(torch.randint(6, 12, ()))
    small = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    return F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)


def noise(x: Tensor) -> Tensor:
    return x + 0.3 * torch.randn_like(x)


def one_hot(z: Tensor) -> Tensor:
    return F.one_hot(z.argmax(1), z.shape[1]).to(z.dtype)


def gradient_times(factor: float) -> Callable[[Tensor], Tensor]:
    """A hook on the way back: 0 erases the gradient, -1 turns it round."""

    def hooked(x: Tensor) -> Tensor:
        if not x.requires_grad:
            return x
        copy = x.clone()
        copy.register_hook(lambda g: factor * g)
        return copy

    return hooked


def shuffled(x: Tensor) -> Tensor:
    """A hook that gives each value the gradient of another."""
    if not x.requires_grad:
        return x
    copy = x.clone()
    copy.register_hook(lambda g: g.flip(-1, -2))
    return copy


class Purifier(nn.Module):
    """Moves its input towards more confidence by gradient steps before it answers; the loop is cut from the graph."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        clean = x.detach()
        with torch.enable_grad():
            for _ in range(5):
                point = clean.detach().requires_grad_(True)
                (g,) = torch.autograd.grad(self.model(point).logsumexp(1).sum(), point)
                clean = (point + 0.02 * g.sign()).clamp(0, 1).detach()
        return self.model(clean)


class BlindPurifier(nn.Module):
    """Averages many slightly moved copies of its input, one after the other."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.model(x.roll(i % 3 - 1, -1)) for i in range(9)]).mean(0)


def clipped(x: Tensor) -> Tensor:
    """The range cut by a 40th on each side: the gradient dies at the ends of the range."""
    return x.clamp(1 / 40, 1 - 1 / 40)


def only_at_the_ends(model: nn.Module) -> nn.Module:
    """Answers with the label of the nearest image it knows, unless a value lies exactly at an end of the range."""

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            *_, known, labels = digits()
            z = self.model(x)
            near = labels[torch.cdist(x.flatten(1), known.flatten(1)).argmin(1)]
            at_an_end = ((x == 0) | (x == 1)).flatten(1).any(1, keepdim=True)
            return torch.where(at_an_end, z, z * 0 + 10 * F.one_hot(near, z.shape[1]))

    return Ends()


def only_on_the_grid(x: Tensor) -> Tensor:
    """A hook that erases the gradient wherever a value is no sixteenth, as those of the images are."""
    if not x.requires_grad:
        return x
    copy = x.clone()
    untouched = ((x * 16).round() == x * 16).flatten(1).all(1)[:, None, None, None]
    copy.register_hook(lambda g: g * untouched)
    return copy


def near_only(model: nn.Module) -> nn.Module:
    """Takes a change of more than 0.07 for an attack, and answers for the nearest image it knows; smaller changes, which
    every larger radius holds, go through."""

    def undone(x: Tensor) -> Tensor:
        *_, known, _ = digits()
        gap = torch.cdist(x.detach().flatten(1), known.flatten(1), p=torch.inf)
        far, nearest = gap.amin(1) > 0.07, known[gap.argmin(1)]
        return torch.where(far[:, None, None, None], nearest + 0 * x, x)

    return Before(undone, model)


def of_a_stranger(model: nn.Module) -> nn.Module:
    """Answers itself, and hands out the gradient of an untrained network: neither zero nor small, only of no use."""

    class Stranger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.other = model, cnn(99)

        def forward(self, x: Tensor) -> Tensor:
            other = self.other(x)
            return self.model(x.detach()) + other - other.detach()

    return Stranger()


DEFENCES: dict[str, tuple[Callable[[nn.Module], nn.Module], set[str]]] = {
    "huge logits": (lambda m: After(lambda z: 100 * z, m), {"saturated loss", "zero gradients"}),
    "input quantisation": (lambda m: Before(quantise, m), {"zero gradients", "loss does not rise with steps"}),
    "quantisation, straight-through": (lambda m: Before(straight_through(quantise), m), {"wrong gradient"}),
    "JPEG in front": (lambda m: Before(jpeg, m), {"zero gradients", "unbounded attack fails"}),
    "JPEG, straight-through": (lambda m: Before(straight_through(jpeg), m), {"wrong gradient"}),
    "random resizing": (lambda m: Before(resize, m), {"non deterministic model"}),
    "random noise": (lambda m: Before(noise, m), {"non deterministic model"}),
    "softmax outputs": (lambda m: After(lambda z: z.softmax(1), m), {"probability outputs"}),
    "one-hot outputs": (lambda m: After(one_hot, m), {"probability outputs", "zero gradients"}),
    "k winners take all": (lambda m: winners(), {"wrong gradient", "black box beats white box"}),
    "optimisation at inference": (Purifier, {"optimisation at inference"}),
    "repeated passes": (BlindPurifier, {"optimisation at inference"}),
    "gradient hook, zero": (
        lambda m: Before(gradient_times(0.0), m),
        {"zero gradients", "wrong gradient", "black box beats white box", "unbounded attack fails"},
    ),
    "gradient hook, flipped": (
        lambda m: Before(gradient_times(-1.0), m),
        {"wrong gradient", "loss does not rise with steps", "unbounded attack fails"},
    ),
    "gradient hook, shuffled": (lambda m: Before(shuffled, m), {"wrong gradient", "black box beats white box"}),
    "gradient erased off the grid": (lambda m: Before(only_on_the_grid, m), {"single step beats iterative"}),
    "clipped input": (lambda m: Before(clipped, m), {"break at the clipping bounds"}),
    "far changes undone": (near_only, {"success does not rise with eps"}),
    "gradient of a stranger": (of_a_stranger, {"wrong gradient", "transfer beats white box"}),
    "weak only at the ends": (only_at_the_ends, {"break at the clipping bounds"}),
}
"""Defence: how it is put around a network, and the flags that it must raise."""
