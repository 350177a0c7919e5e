"""Losses of deep hashing, each a value: `loss(u, y, bank, own)`.

u: [n, K] in (-1, 1), the outputs of a batch; y: 0/1 [n, C]; bank: outputs, codes and labels of all training examples (None
for losses that need none); own: the loss's own parameters and buffers, which `parts` makes. Items are similar, s_ij = 1,
where they share a label. Forms and constants are those of the official code of CgAT.
"""

import warnings
from typing import Annotated, Any, Protocol

import torch
import torch.nn.functional as F
from pydantic import PlainValidator
from torch import Tensor, nn

from withstand.attacks.hashing.centres import sign
from withstand.errors import bad
from withstand.random import Rows
from withstand.registry import coerce, component
from withstand.representation.hashing.bank import Bank


class HashingLoss(Protocol):
    """What a hashing loss is; `banked` tells whether it reads the outputs of all training examples."""

    banked: bool

    def parts(self, bits: int, classes: int, rows: Rows) -> nn.Module: ...

    def __call__(self, u: Tensor, y: Tensor, bank: Bank | None, own: Any) -> Tensor: ...


class _Pairwise:
    """Losses of a batch against all training examples; u.U and s are theirs."""

    banked = True

    def parts(self, bits: int, classes: int, rows: Rows) -> nn.Module:
        """Nothing of its own."""
        return nn.Module()

    @staticmethod
    def pairs(u: Tensor, y: Tensor, bank: Bank) -> tuple[Tensor, Tensor]:
        """Products u_i . U_j and similarities s_ij, [n, N]."""
        return u @ bank.u.T, (y @ bank.y.T > 0).to(u.dtype)


@component("hashing_loss", "dph", systems=("cgat",))
class DPH(_Pairwise):
    """Squared error of normalised products: mean (u_i . U_j / K - (2 s_ij - 1))^2.

    Unweighted: with many classes nearly all pairs are dissimilar, and all examples may end in one code. Look at the number
    of distinct codes.

    Reference: Yang, Liu, Deng, Tao, "Adversarial Examples for Hamming Space Search", IEEE Transactions on Cybernetics, 2020.
    """

    def __call__(self, u: Tensor, y: Tensor, bank: Bank, own: Any) -> Tensor:
        product, s = self.pairs(u, y, bank)
        return (product / u.shape[1] - (2 * s - 1)).square().mean()


@component("hashing_loss", "dpsh", systems=("cgat",))
class DPSH(_Pairwise):
    """Pairwise likelihood: mean softplus(t) - s t, t = u_i . U_j / 2, + eta * mean (u - sign u)^2.

    Reference: Li, Wang, Kang, "Feature Learning based Deep Supervised Hashing with Pairwise Labels", IJCAI 2016, arXiv
    1511.03855.
    """

    eta: float = 1e-3

    def __post_init__(self) -> None:
        _at_least_zero(eta=self.eta)

    def __call__(self, u: Tensor, y: Tensor, bank: Bank, own: Any) -> Tensor:
        product, s = self.pairs(u, y, bank)
        return _likelihood(product / 2, s).mean() + self.eta * (u - sign(u.detach())).square().mean()


@component("hashing_loss", "hashnet", systems=("cgat",))
class HashNet(_Pairwise):
    """Pairwise likelihood with t = alpha u_i . U_j, in which similar and dissimilar pairs weigh as much in all.

    sum_{s=1} (softplus(t) - t) / S1 + sum_{s=0} softplus(t) / S0, S1 and S0 their numbers. The paper hardens the tanh during
    training; this form, which is the official one of CgAT, does not.

    Reference: Cao, Long, Wang, Yu, "HashNet: Deep Learning to Hash by Continuation", ICCV 2017, arXiv 1702.00758.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise bad("alpha", self.alpha, "a number > 0")

    def __call__(self, u: Tensor, y: Tensor, bank: Bank, own: Any) -> Tensor:
        product, s = self.pairs(u, y, bank)
        each = _likelihood(self.alpha * product, s)
        return (each * s).sum() / s.sum().clamp_min(1) + (each * (1 - s)).sum() / (1 - s).sum().clamp_min(1)


@component("hashing_loss", "dch", systems=("cgat",))
class DCH:
    """Cauchy likelihood within the batch, for small Hamming radii.

    mean w_ij (s log(d / gamma) + log(1 + gamma / d)) + weight * mean log(1 + d(|u|, 1) / gamma), d = (1 - cos) K / 2 with
    cos <= 0.99, w = pairs / similar pairs or pairs / dissimilar pairs (1 where a batch has one kind only). Pairs of an
    example with itself count, as in the official code.

    Reference: Cao, Long, Liu, Wang, "Deep Cauchy Hashing for Hamming Space Retrieval", CVPR 2018.
    """

    gamma: float = 20.0
    weight: float = 0.1
    banked = False

    def __post_init__(self) -> None:
        _at_least_zero(weight=self.weight)
        if not self.gamma > 0:
            raise bad("gamma", self.gamma, "a number > 0")

    def parts(self, bits: int, classes: int, rows: Rows) -> nn.Module:
        """Nothing of its own."""
        return nn.Module()

    def __call__(self, u: Tensor, y: Tensor, bank: Bank | None, own: Any) -> Tensor:
        s = (y @ y.T > 0).to(u.dtype)
        similar, other = s.sum(), (1 - s).sum()
        w = torch.ones_like(s)
        if bool(similar > 0) and bool(other > 0):
            w = s.numel() * (s / similar + (1 - s) / other)
        d = self._distance(u, u)
        cauchy = w * (s * (d / self.gamma).log() + (self.gamma / d).log1p())
        rest = (self._distance(u.abs(), torch.ones_like(u[:1])) / self.gamma).log1p()
        return cauchy.mean() + self.weight * rest.mean()

    @staticmethod
    def _distance(a: Tensor, b: Tensor) -> Tensor:
        lengths = a.norm(dim=1, keepdim=True) * b.norm(dim=1)
        return (1 - (a @ b.T / lengths.clamp_min(1e-4)).clamp_max(0.99)) * a.shape[1] / 2


@component("hashing_loss", "csq", systems=("cgat",))
class CSQ:
    """Central similarity: the cross-entropy of (u + 1) / 2 against the code that the labels were given beforehand.

    mean BCE((u + 1) / 2, (c + 1) / 2) + weight * mean (|u| - 1)^2. A class's centre is a row of the Hadamard matrix of K, or
    of its negative: any two differ in half of the bits, or in all. c is the centre of the label, of several labels the
    majority of their centres, and where those are divided a bit that was drawn once for all.

    random_centres: K that is no power of two, and classes beyond 2 K, take centres in which half of the bits are -1, drawn
    at random (the best of 20 draws by their smallest distance). What is drawn depends on K and the number of classes alone,
    so that a model goes on with the centres that it has learned, whatever the seed.

    Reference: Yuan et al., "Central Similarity Quantization for Efficient Image and Video Retrieval", CVPR 2020, arXiv
    1908.00347.
    """

    weight: float = 1e-4
    random_centres: bool = False
    banked = False

    def __post_init__(self) -> None:
        _at_least_zero(weight=self.weight)

    def parts(self, bits: int, classes: int, rows: Rows) -> nn.Module:
        """The centres. Raises: BadInput where there is no Hadamard matrix of K, or none large enough."""
        power = bits & (bits - 1) == 0
        if not self.random_centres and (not power or classes > 2 * bits):
            got = f"{bits} for {classes} classes"
            mend = "Or csq(random_centres=True)."
            raise bad("bits", got, "a power of two, at least half the number of classes", mend)
        own, same = nn.Module(), Rows.count(0, 1)
        own.register_buffer("centres", hash_centres(bits, classes, same))
        own.register_buffer("divided", same.signs((bits,), "csq ties")[0])
        return own

    def __call__(self, u: Tensor, y: Tensor, bank: Bank | None, own: Any) -> Tensor:
        total = y @ own.centres
        c = torch.where(total == 0, own.divided, total.sign())
        p = ((u + 1) / 2).clamp(0, 1)
        return F.binary_cross_entropy(p, (c + 1) / 2) + self.weight * (u.abs() - 1).square().mean()


@component("hashing_loss", "greedyhash", systems=("cgat",))
class GreedyHash:
    """Classification by a linear head over sign(u), the gradient passed straight through, + weight * mean ||u| - 1|^3.

    For one label each: of several, the first counts, as in the official code, and a warning says so.

    Reference: Su, Zhang, Han, Tian, "Greedy Hash: Towards Fast Optimization for Accurate Hash Coding in CNN", NeurIPS 2018.
    """

    weight: float = 0.1
    banked = False

    def __post_init__(self) -> None:
        _at_least_zero(weight=self.weight)

    def parts(self, bits: int, classes: int, rows: Rows) -> nn.Module:
        """The head, without a bias."""
        return nn.Linear(bits, classes, bias=False)

    def __call__(self, u: Tensor, y: Tensor, bank: Bank | None, own: Any) -> Tensor:
        if bool((y.sum(1) > 1).any()):
            warnings.warn("greedyhash learns the first of several labels alone; take csq or hashnet", stacklevel=2)
        code = u + (sign(u) - u).detach()
        return F.cross_entropy(own(code), y.argmax(1)) + self.weight * (u.abs() - 1).abs().pow(3).mean()


@component("hashing_loss", "dsdh", systems=("cgat",))
class DSDH(_Pairwise):
    """DPSH's likelihood, and codes B and a classifier W that fit each other: + mu mean (y - W^T B)^2 + nu mean W^2.

    B [N, K] and W [K, C] are found once an epoch by discrete coordinate descent (`coordinate_descent`, `rounds` of it) from
    the codes of the bank on, B with the weight eta near the network's outputs. The terms of W have no gradient in the
    network, in the official code neither: it learns from the likelihood alone. Their value is taken at sign(u) in the place
    of the rows of B.

    Reference: Li, Sun, He, Tan, "Deep Supervised Discrete Hashing", NeurIPS 2017, arXiv 1705.10999.
    """

    mu: float = 1.0
    nu: float = 1.0
    eta: float = 55.0
    rounds: int = 10

    def __post_init__(self) -> None:
        _at_least_zero(eta=self.eta)
        if self.mu <= 0 or self.nu <= 0 or self.rounds < 1:
            raise bad("mu, nu, rounds", (self.mu, self.nu, self.rounds), "numbers > 0, and at least one round")

    def parts(self, bits: int, classes: int, rows: Rows) -> nn.Module:
        """W."""
        own = nn.Module()
        own.register_buffer("W", torch.zeros(bits, classes))
        return own

    def begin_epoch(self, bank: Bank, own: Any) -> None:
        """W for the codes and outputs of the bank."""
        own.W.copy_(coordinate_descent(bank.b, bank.u, bank.y, self.mu, self.nu, self.eta, self.rounds)[1])

    def __call__(self, u: Tensor, y: Tensor, bank: Bank, own: Any) -> Tensor:
        product, s = self.pairs(u, y, bank)
        fit = (y - sign(u.detach()) @ own.W).square().mean()
        return _likelihood(product / 2, s).mean() + self.mu * fit + self.nu * own.W.square().mean()


def coordinate_descent(
    b: Tensor, u: Tensor, y: Tensor, mu: float, nu: float, eta: float, rounds: int
) -> tuple[Tensor, Tensor]:
    """Codes B [N, K] from b on, and W [K, C], that lower mu |y - B W|^2 + nu |W|^2 + eta |B - u|^2, bit by bit.

    W is ridge regression; then each column of B in turn is sign(y W_k + (eta / mu) u_k - B_{-k} W_{-k} W_k), which is its
    optimum for the rest.
    """
    b, w = b.clone(), torch.zeros(b.shape[1], y.shape[1]).to(b)
    ridge = nu / mu * torch.eye(b.shape[1]).to(b)
    for _ in range(rounds):
        w = torch.linalg.solve(b.T @ b + ridge, b.T @ y)
        pull = y @ w.T + eta / mu * u
        for k in range(b.shape[1]):
            rest = b @ w - b[:, k : k + 1] * w[k]
            b[:, k] = sign(pull[:, k] - rest @ w[k])
    return b, w


def hash_centres(bits: int, classes: int, rows: Rows) -> Tensor:
    """Centres [C, K] of -1 and 1: Hadamard rows and their negatives where K is a power of two and there are enough, and
    for the rest codes with half of the bits -1 at random, the best of 20 draws by the smallest distance."""
    sylvester = torch.ones(1, 1)
    while len(sylvester) < bits:
        sylvester = torch.cat([torch.cat([sylvester, sylvester], 1), torch.cat([sylvester, -sylvester], 1)])
    known = torch.cat([sylvester, -sylvester])[:classes] if len(sylvester) == bits else torch.zeros(0, bits)
    missing = classes - len(known)
    if not missing:
        return known
    best, least = known, -1.0
    source = Rows.count(rows.seed, missing)
    for draw in range(20):
        rank = source.uniform((bits,), "csq centres", draw).argsort(1).argsort(1)
        made = torch.cat([known, torch.where(rank < bits // 2, -1.0, 1.0)])
        apart = (bits - made @ made.T) / 2 + bits * torch.eye(classes)
        if float(apart.min()) > least:
            best, least = made, float(apart.min())
    return best


def _likelihood(t: Tensor, s: Tensor) -> Tensor:
    return F.softplus(t) - s * t


def _at_least_zero(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise bad(name, value, "a number >= 0")


def _loss(value: Any) -> Any:
    value = coerce("hashing_loss")(value)
    if not all(hasattr(value, a) for a in ("banked", "parts")) or not callable(value):
        raise bad("loss", repr(value), "a hashing loss or its text, e.g. 'csq' or 'hashnet(alpha=0.1)'")
    return value


LossField = Annotated[Any, PlainValidator(_loss)]
"""The type of a field that holds a hashing loss; accepts its text as well."""
