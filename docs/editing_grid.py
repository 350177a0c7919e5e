"""The pictures of the page on editing, made when the pages are built: a photograph that scikit-learn ships, with the object
that GrabCut finds in it, and a procedural object on a procedural ground."""

import io

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from withstand.editing import GrabCut, ObjectEditor, texture

SIDE, GAP = 160, 4
EDITS = (
    ("identity", {}),
    ("background", {"complexity": -20}),
    ("background", {"complexity": 20}),
    ("random_background", {}),
    ("size", {"rate": "full"}),
    ("size", {"rate": 0.05}),
    ("position", {"at": "random"}),
    ("direction", {"degrees": 45}),
)


def grid() -> bytes:
    """A PNG: one row for each picture; the picture, its mask, then each of `EDITS`."""
    rows = []
    for key, (image, mask) in enumerate((_flower(), _drawn())):
        made = [image, mask.float().expand(3, -1, -1)]
        for kind, params in EDITS:
            # places and directions are shown at half the size, where there is room
            steps = [("size", {"rate": 0.1})] if kind in ("position", "direction") else []
            made.append(ObjectEditor().edits(image, mask, [*steps, (kind, params)], key=key).image)
        rows.append(torch.cat([torch.nn.functional.pad(m, (0, GAP, 0, GAP), value=1.0) for m in made], 2))
    pixels = torch.cat(rows, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _flower() -> tuple[Tensor, Tensor]:
    photo = Image.fromarray(load_sample_image("flower.jpg"))
    left = (photo.width - photo.height) // 2
    photo = photo.crop((left, 0, left + photo.height, photo.height)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    image = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1).float() / 255
    return image, GrabCut()(image)


def _drawn() -> tuple[Tensor, Tensor]:
    """A striped disc with a beak, so that its direction shows."""
    ground = 0.5 + 0.5 * texture(SIDE, SIDE, torch.Generator().manual_seed(2), "cloud")
    y, x = torch.meshgrid(torch.arange(SIDE) - 88.0, torch.arange(SIDE) - 70.0, indexing="ij")
    mask = (x**2 + y**2 <= 34**2) | ((x > 0) & (x < 62) & (y.abs() <= (62 - x) / 3))
    stripes = torch.sin(x / 4)[None] * torch.tensor([0.3, 0.2, 0.1])[:, None, None]
    thing = torch.tensor([0.75, 0.4, 0.15])[:, None, None] + 0.5 * stripes
    return torch.where(mask, thing, ground).clamp(0, 1), mask


if __name__ == "__main__":
    import sys
    from pathlib import Path

    Path(sys.argv[1]).write_bytes(grid())
