"""Small benchmark folders for tests."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn

from withstand.data.folders import wnids

SIDE = 8


def paint(label: int, salt: int = 0, side: int = SIDE) -> np.ndarray:
    """uint8 [side, side, 3] whose grey level and tint say the label: level = label // 4, tint = label % 4."""
    image = np.full((side, side, 3), label // 4, np.uint8)
    image[..., 2] = (label % 4) * 60
    image[0, 0, 1] = salt
    return image


class Reader(nn.Module):
    """Reads the label that `paint` painted, off by `shift`; logits [N, 1000]."""

    def __init__(self, shift: int = 0, classes: int = 1000) -> None:
        super().__init__()
        self.shift, self.classes = shift, classes

    def forward(self, x: Tensor) -> Tensor:
        middle = (x[:, :, x.shape[2] // 2, x.shape[3] // 2] * 255).round()
        label = (middle[:, 0] * 4 + (middle[:, 2] / 60).round() + self.shift).long() % self.classes
        return nn.functional.one_hot(label, self.classes).float() * 9 - 4


def tree(
    place: Path, labels: Iterable[int], each: int = 1, names: dict[int, str] | None = None, side: int = SIDE
) -> Path:
    """Class folders with `each` PNG files."""
    every = wnids()
    for label in labels:
        folder = place / (names[label] if names else every[label])
        folder.mkdir(parents=True)
        for i in range(each):
            Image.fromarray(paint(label, i, side)).save(folder / f"{i:03d}.png")
    return place


def corrupted(place: Path, kinds: Iterable[str], labels: Iterable[int], each: int = 1) -> Path:
    """An ImageNet-C of these kinds: place/kind/severity/wnid."""
    labels = list(labels)
    for kind in kinds:
        for severity in range(1, 6):
            tree(place / kind / str(severity), labels, each)
    return place


def cifar_c(place: Path, kinds: Iterable[str], labels: list[int], copies: int = 1) -> Path:
    """A CIFAR-10-C whose first pixel says label, severity and position; the other pixels are painted by label."""
    place.mkdir(parents=True)
    for kind in kinds:
        images = [
            np.where(np.arange(32)[:, None, None] == 0, np.uint8([label, severity, i]), paint(label, side=32))
            for severity in range(1, 6)
            for i, label in enumerate(labels)
        ]
        np.save(place / f"{kind}.npy", np.array(images, np.uint8))
    np.save(place / "labels.npy", np.tile(np.array(labels), copies))
    return place


def objectnet(place: Path, keep: Iterable[int] = range(313)) -> Path:
    """Folders thing_000 to thing_312, or some of them, with one image each that is painted as its position."""
    return tree(place, keep, 1, {i: f"thing_{i:03d}" for i in range(313)}, side=SIDE + 4)


def edits(place: Path, parts: Iterable[str], labels: dict[str, int]) -> Path:
    """An ImageNet-E: flat folders, and labels.txt."""
    for part in parts:
        (place / part).mkdir(parents=True)
        for name, label in labels.items():
            Image.fromarray(paint(label)).save(place / part / f"{name}.png")
    (place / "labels.txt").write_text("".join(f"{name}.png\t{label}\n" for name, label in labels.items()))
    return place
