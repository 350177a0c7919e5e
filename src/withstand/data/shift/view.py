"""How a photograph of a benchmark becomes the input of a model."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from PIL import Image

from withstand.errors import bad, unknown

Part = Literal["centre", "whole", "inside"]
"""centre: resize, then the centre, as for ImageNet's validation part. whole: the file as it is, resized only if its size is
another. inside: a border of two pixels off, then the shorter side to the model's size, then the centre (ObjectNet)."""

BORDER = 2
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class View:
    """What a model takes: a square of `size` pixels, cut from the photograph whose shorter side was brought to `resize`.

    interpolation: "bilinear" (torchvision's models) or what the model was published with. squash: both sides are brought to
    `resize`, whatever the shape. source: who says so. Resizing is Pillow's, and rounds as torchvision and timm do.
    """

    size: int = 224
    resize: int = 256
    interpolation: str = "bilinear"
    squash: bool = False
    source: str = "the convention of torchvision's models"

    def __post_init__(self) -> None:
        if self.interpolation not in FILTERS:
            raise unknown("interpolation", self.interpolation, FILTERS)
        if not 1 <= self.size <= self.resize:
            raise bad("size", f"{self.size} cut out of {self.resize}", "at least one pixel, and no more than there are")

    @classmethod
    def cropped(cls, size: int, crop: float, interpolation: str, squash: bool = False, source: str = "given") -> "View":
        """By the share of the resized side that is kept, as timm states it: 224 and 0.875 make 256.

        Raises: BadInput for a share outside (0, 1].
        """
        if not 0 < crop <= 1:
            raise bad("crop", crop, "a share in (0, 1], e.g. 0.875")
        return cls(size, math.floor(size / crop), interpolation, squash, source)

    def __call__(self, image: Image.Image, part: Part = "centre") -> Image.Image:
        """The square. image: RGB."""
        if part == "whole":
            return image if image.size == (self.size, self.size) else self._scaled(image, self.size, self.size)
        if part == "inside":
            w, h = image.size
            return self._centre(self._shorter(image.crop((BORDER, BORDER, w - BORDER, h - BORDER)), self.size))
        if self.squash:
            return self._centre(self._scaled(image, self.resize, self.resize))
        return self._centre(self._shorter(image, self.resize))

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)

    def _shorter(self, image: Image.Image, side: int) -> Image.Image:
        w, h = image.size
        return self._scaled(image, *((side, int(side * h / w)) if w <= h else (int(side * w / h), side)))

    def _scaled(self, image: Image.Image, w: int, h: int) -> Image.Image:
        return image if image.size == (w, h) else image.resize((w, h), FILTERS[self.interpolation])

    def _centre(self, image: Image.Image) -> Image.Image:
        left, top = (round((side - self.size) / 2) for side in image.size)
        return image.crop((left, top, left + self.size, top + self.size))
