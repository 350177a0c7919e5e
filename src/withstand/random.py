"""Random draws that depend on (seed, example, stream, step) and on nothing else.

Two runs that split the same examples into other blocks, or lose other examples on the way, draw the same numbers for
the same example. The generator is splitmix64 used as a counter: every element of a draw is a hash of its own position.

Reference: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


_M1, _M2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _mix_(z: Tensor) -> Tensor:
    """The splitmix64 finaliser on int64, in the memory of z, since new memory costs more than the arithmetic.

    `>>` is arithmetic, so the sign bits are masked away.
    """
    moved = torch.empty_like(z)
    for places, factor in ((30, _M1), (27, _M2), (31, 1)):
        torch.bitwise_right_shift(z, places, out=moved)
        z.bitwise_xor_(moved.bitwise_and_((1 << (64 - places)) - 1))
        if factor != 1:
            z.mul_(factor)
    return z


@cache
def _stream(name: str) -> int:
    return _signed(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))


def derive(seed: int, *names: object) -> int:
    """A new seed in [0, 2^63) for a named purpose, e.g. `derive(seed, "check", "corruptions")`."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Rows:
    """A source of random numbers for a batch of examples.

    seed: any integer. ids: int64 [N], the identity of each example (its index in the data set, say).
    Every method returns one independent draw per example; `stream` names the purpose and `step` the repetition.
    """

    seed: int
    ids: Tensor

    @classmethod
    def count(cls, seed: int, n: int, device: torch.device | str = "cpu") -> "Rows":
        """Rows with ids 0..n-1."""
        return cls(seed, torch.arange(n, device=device))

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: Tensor) -> "Rows":
        """The same source for a selection of the examples (indices or a boolean mask)."""
        return Rows(self.seed, self.ids[index])

    def bits(self, shape: tuple[int, ...], stream: str, step: int | Tensor = 0) -> Tensor:
        """[N, *shape] of int64 with all 64 bits random. step: a tensor int64 [N] has one for each row."""
        if isinstance(step, Tensor):
            place = step * _signed(0xA0761D6478BD642F) + _stream(stream)
        else:
            place = _signed(_stream(stream) + step * 0xA0761D6478BD642F)
        key = _mix_(self._keys + place)
        size = math.prod(shape)
        counter = torch.arange(1, size + 1, device=self.ids.device).mul_(_signed(_GOLDEN))
        return _mix_(key[:, None] + counter).reshape(len(self), *shape)

    @cached_property
    def _keys(self) -> Tensor:
        """What the draws of each example start from, int64 [N]."""
        return _mix_(self.ids.long() * _signed(_GOLDEN) + _signed(self.seed * 0xD1342543DE82EF95))

    def uniform(
        self,
        shape: tuple[int, ...],
        stream: str,
        step: int | Tensor = 0,
        low: float = 0.0,
        high: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """[N, *shape] uniform in [low, high)."""
        digits = 53 if dtype == torch.float64 else 24
        whole = self.bits(shape, stream, step).bitwise_right_shift_(64 - digits).bitwise_and_((1 << digits) - 1)
        unit = whole.to(torch.float64 if digits == 53 else torch.float32).mul_(2.0**-digits)
        return unit.mul_(high - low).add_(low).to(dtype)

    def normal(self, shape: tuple[int, ...], stream: str, step: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """[N, *shape] standard normal (Box-Muller in float64)."""
        u = self.uniform((2, *shape), stream, step, dtype=torch.float64)
        radius, angle = u[:, 0].neg_().log1p_().mul_(-2).sqrt_(), u[:, 1].mul_(2 * math.pi)
        return radius.mul_(angle.cos_()).to(dtype)

    def exponential(
        self, shape: tuple[int, ...], stream: str, step: int = 0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """[N, *shape] exponential with mean 1."""
        return -torch.log1p(-self.uniform(shape, stream, step, dtype=torch.float64)).to(dtype)

    def signs(self, shape: tuple[int, ...], stream: str, step: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """[N, *shape] of -1 and +1 with equal chance."""
        return torch.where(self.bits(shape, stream, step) < 0, -1.0, 1.0).to(dtype)

    def integers(self, shape: tuple[int, ...], low: int, high: int, stream: str, step: int = 0) -> Tensor:
        """[N, *shape] of int64 uniform in {low, ..., high - 1}."""
        return (self.uniform(shape, stream, step, dtype=torch.float64) * (high - low)).long() + low

    def generators(self, stream: str, step: int = 0) -> list[torch.Generator]:
        """One CPU generator per example, for code that needs a sequential source (slow: prefer the draws above)."""
        seeds = self.bits((), stream, step).tolist()
        return [torch.Generator().manual_seed(s & ((1 << 63) - 1)) for s in seeds]
