"""What the transfer views share: averaging looks, and a radius per input value."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from withstand.errors import bad
from withstand.random import Rows
from withstand.threats import L2, Linf

Look = tuple[Tensor, Tensor]


def mean(looks: Iterable[Look]) -> Look:
    """The mean gradient and the mean value of several looks; one is held at a time."""
    found, count = None, 0
    for gradient, value in looks:
        if found is None:
            found = (gradient, value)
        else:  # only sums are written over: a look may give out what its model still holds
            found = (
                (found[0] + gradient, found[1] + value)
                if count == 1
                else (found[0].add_(gradient), found[1].add_(value))
            )
        count += 1
    assert found is not None
    return found if count == 1 else (found[0].div_(count), found[1].div_(count))


def around(rows: Rows, x: Tensor, radius: Tensor | float, stream: str, step: int) -> Tensor:
    """x plus uniform noise in [-radius, radius], drawn anew for each example; radius: a number or [N, 1, ...]."""
    return rows.uniform(tuple(x.shape[1:]), stream, step, -1.0, 1.0, dtype=x.dtype).mul_(radius).add_(x)


def per_value(view: str, search: Any) -> Tensor:
    """How far one input value may move, [A, 1, ...]: the radius of a Linf threat, the radius / sqrt(values) of an L2 one.

    Raises:
        BadInput: for other threats, whose radius says nothing about a single value.
    """
    threat, x = search.threat, search.x_alive
    if not isinstance(threat, (Linf, L2)) or threat.eps is None:
        raise bad(f"{view}: threat", repr(threat), "linf(eps) or l2(eps)")
    length = threat.radius(x) / (x[0].numel() ** 0.5 if isinstance(threat, L2) else 1)
    return length.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))


def images(view: str, x: Tensor) -> tuple[int, int]:
    """Height and width of a batch [N, C, H, W]; anything else is refused."""
    if x.dim() != 4:
        raise bad(f"{view}: x", f"shape {tuple(x.shape)}", "images [N, C, H, W]")
    return x.shape[2], x.shape[3]


SMALL = 64
"""Images with a shorter side than this take the settings that suit them where a method's own were made for ImageNet."""
