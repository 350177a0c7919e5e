"""What an edit hands back, and what paints a background."""

from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor


@dataclass(frozen=True)
class EditResult:
    """One edited image.

    image: float [3, H, W] in [0, 1]. mask: bool [H, W], the object in `image`. rate: the share of pixels that the object
    has. complexity: of the whole image (`withstand.editing.spectrum.complexity`). skipped: nothing was edited, `image`
    is the source; reason: why.
    """

    image: Tensor
    mask: Tensor
    rate: float
    complexity: float
    skipped: bool = False
    reason: str = ""


class Painter(Protocol):
    """Paints what lies behind an object."""

    def paint(
        self,
        scene: Tensor,
        image: Tensor,
        mask: Tensor,
        complexity: float,
        generator: Generator,
        label: int | None = None,
    ) -> Tensor:
        """A new background, float [3, H, W] in [0, 1]; who calls pastes the object's pixels over it.

        scene: float [3, H, W] in [0, 1], the picture without its object. image: the picture with the object where it is
        to be. mask: bool [H, W], the object in `image`. complexity: lambda of the paper; above 0 busier, below 0
        plainer, 0 as it is. label: the true class, for painters that lead a classifier astray.
        """
        ...
