"""Frost textures: the user's own, or a procedural stand-in for the six photographs of the published benchmark.

The stand-in: five textures of 480 x 640 pixels, the same in every run. Hundreds of leaves of ice grow in fans from
common points over a smooth haze; a pixel belongs to the leaf that reaches it first. A leaf widens quickly, tapers to
its tip, and shows its stem, its ribs and one half turned to the light. Mean colour and contrast are set to those of the
photographs. Reports call the corruption `frost*` when these are used.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from withstand.corruptions.tables import Preset
from withstand.errors import bad
from withstand.random import Rows, derive

Textures = str | Path | Sequence[np.ndarray] | None

# Mean RGB, standard deviation of the grey value, leaves, longest leaf in pixels, strength of the haze.
_LOOKS = (
    ((85, 150, 166), 19, 1200, 110, 1.3),
    ((200, 205, 214), 22, 2000, 110, 0.5),
    ((190, 198, 210), 23, 2800, 70, 0.6),
    ((138, 153, 165), 29, 4000, 45, 0.6),
    ((112, 123, 135), 43, 2000, 85, 0.9),
)
_TALL, _WIDE = 480, 640


def textures(given: Textures, preset: Preset, h: int, w: int) -> tuple[Tensor, ...]:
    """At most five textures [3, H, W] of float levels, each at least h x w.

    As published: the first five are used, shrunk to a fifth for the preset "cifar". Textures smaller than the image
    are enlarged.
    """
    if given is None or isinstance(given, (str, Path)):
        return _scaled(None if given is None else str(given), preset, h, w)
    return tuple(_fit(_valid(t), preset, h, w) for t in list(given)[:5]) or _none("an empty list")


@lru_cache(4)
def _scaled(folder: str | None, preset: Preset, h: int, w: int) -> tuple[Tensor, ...]:
    source = procedural() if folder is None else _read(Path(folder))
    return tuple(_fit(t, preset, h, w) for t in source)


def _fit(texture: np.ndarray, preset: Preset, h: int, w: int) -> Tensor:
    import cv2

    tall, wide = texture.shape[:2]
    scale = max(0.2 if preset == "cifar" else 1.0, h / tall, w / wide)
    if scale != 1:
        size = max(round(wide * scale), w), max(round(tall * scale), h)
        texture = cv2.resize(texture, size, interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(texture.transpose(2, 0, 1).astype(np.float32))


def _valid(texture: np.ndarray) -> np.ndarray:
    texture = np.asarray(texture)
    if texture.dtype != np.uint8 or texture.ndim != 3 or texture.shape[2] != 3 or 0 in texture.shape:
        raise bad("frost_textures", f"{texture.dtype} {list(texture.shape)}", "uint8 arrays [H, W, 3] in RGB order")
    return texture


def _read(folder: Path) -> Sequence[np.ndarray]:
    from PIL import Image

    endings = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in endings) if folder.is_dir() else []
    try:
        return [np.asarray(Image.open(f).convert("RGB")) for f in files[:5]] or _none(f"no image in {str(folder)!r}")
    except OSError as error:
        raise bad("frost_textures", error, "images that Pillow can read") from None


def _none(got: str) -> tuple[()]:
    raise bad("frost_textures", got, "a folder with images or a list of uint8 arrays [H, W, 3]")


@cache
def procedural() -> tuple[np.ndarray, ...]:
    """Five uint8 [480, 640, 3] textures, drawn from fixed seeds."""
    return tuple(_texture(i, *look) for i, look in enumerate(_LOOKS))


def _texture(
    index: int, colour: tuple[int, int, int], contrast: float, leaves: int, longest: float, haze: float
) -> np.ndarray:
    rows = Rows.count(derive(0, "frost texture", index), leaves)
    one = rows.take(torch.zeros(1, dtype=torch.int64))
    warp = [3 * _cloud(one, f"warp {axis}", 5) for axis in "xy"]
    y, x = np.mgrid[:_TALL, :_WIDE].astype(np.float32) + np.stack(warp)
    arrival = np.full((_TALL, _WIDE), 1.0, np.float32)
    ice = np.full((_TALL, _WIDE), -0.8, np.float32)
    spray = one.uniform((3, 1 + leaves // 5), "spray")[0].numpy()  # five leaves fan out from one point
    for i, draw in enumerate(rows.uniform((7,), "leaf").numpy()):
        length = longest * (0.25 + 0.75 * draw[0] ** 2)
        root_x, root_y, fan = spray[:, i // 5]
        turn = 2 * np.pi * fan + 3.5 * (draw[1] - 0.5)
        root = root_x * _WIDE + 20 * (draw[2] - 0.5), root_y * _TALL + 20 * (draw[3] - 0.5)
        width = length * (0.1 + 0.5 * draw[4] ** 2)
        tip = root[0] + length * np.cos(turn), root[1] + length * np.sin(turn)
        ends = zip(root[::-1], tip[::-1])  # no more than this box can be reached: the warp moves it by some 9 pixels
        box = tuple(slice(max(int(min(e) - width - 9), 0), max(int(max(e) + width + 9), 0)) for e in ends)
        time, shade = _leaf(x[box] - root[0], y[box] - root[1], turn, length, width, draw[5:])
        first = time < arrival[box]
        arrival[box][first], ice[box][first] = time[first], shade[first]
    grain = one.uniform((_TALL, _WIDE), "grain")[0].numpy() - 0.5
    relief = ice - 0.2 * np.roll(ice, (1, 1), (0, 1))  # lit from one corner
    grey = relief / relief.std() + haze * _cloud(one, "haze", 6) + 0.3 * grain
    grey = (grey - grey.mean()) / grey.std() * contrast
    return np.clip(np.round(np.array(colour) + grey[..., None]), 0, 255).astype(np.uint8)


def _leaf(
    dx: np.ndarray, dy: np.ndarray, turn: float, length: float, width: float, draw: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """When one leaf of ice reaches each pixel (1 = the end of its growth), and how bright it is there."""
    along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    far = np.abs(across)
    reach = width * np.clip(along / (0.3 * length), 0.1, 1)
    time = 0.35 * draw[0] + np.abs(along) / np.where(along > 0, length, 0.1 * length) + far / reach
    ribs = np.cos((along - (0.6 + draw[1]) * far) * (2 * np.pi / (4 + 5 * draw[0])))
    side = 0.35 * np.sign(across)  # one half of the leaf faces the light
    return time, draw[1] * 1.6 - 0.5 + 0.3 * ribs + side + 0.7 * np.exp(-(far**2) / 2) - 0.8 * time


def _cloud(one: Rows, stream: str, octaves: int) -> np.ndarray:
    """[480, 640] smooth noise, mean 0, deviation 1: `octaves` grids, each twice as fine and 0.6 times as strong."""
    import cv2

    total = np.zeros((_TALL, _WIDE), np.float32)
    for k in range(octaves):
        grid = one.uniform((3 * 2**k, 4 * 2**k), f"{stream} {k}")[0].numpy() - 0.5
        total += 0.6**k * cv2.resize(grid, (_WIDE, _TALL), interpolation=cv2.INTER_CUBIC)
    return (total - total.mean()) / total.std()
