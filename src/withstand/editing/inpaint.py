"""Taking an object out of a picture: what was behind it is made up from its surroundings."""

from typing import Literal, get_args

import cv2
import numpy as np
import torch
from torch import Tensor

from withstand.errors import unknown

Filling = Literal["telea", "navier_stokes", "harmonic"]
_CV = {"telea": cv2.INPAINT_TELEA, "navier_stokes": cv2.INPAINT_NS}
_RADIUS = 3  # pixels that opencv looks at around each one that it fills


def remove_object(image: Tensor, mask: Tensor, method: Filling = "telea", dilation: int = 3) -> Tensor:
    """The picture without its object, float [3, H, W] in [0, 1].

    image: float [3, H, W] in [0, 1]. mask: bool [H, W], the object. method: "telea" (fast marching), "navier_stokes"
    (both of opencv, which work on 8 bits), or "harmonic": the solution of Laplace's equation with the surroundings as
    boundary values, smooth and without texture. dilation: so many pixels around the object go with it, since its edge
    colours them. All pixels further away stay bit for bit; where the object leaves none, everything is mid-grey.

    Reference: Telea, "An Image Inpainting Technique Based on the Fast Marching Method", 2004; Bertalmio, Bertozzi, Sapiro,
    "Navier-Stokes, Fluid Dynamics, and Image and Video Inpainting", CVPR 2001.
    """
    if method not in get_args(Filling):
        raise unknown("method", method, get_args(Filling))
    hole = dilated(mask.cpu().numpy(), dilation)
    if hole.all():
        return torch.full_like(image, 0.5)
    pixels = image.detach().cpu().numpy().transpose(1, 2, 0)
    if method == "harmonic":
        filled = _harmonic(pixels, hole)
    else:
        bytes_ = np.ascontiguousarray((pixels * 255).round().astype(np.uint8))
        filled = cv2.inpaint(bytes_, hole.astype(np.uint8), _RADIUS, _CV[method])[hole].astype(np.float32) / 255
    made = pixels.copy()
    made[hole] = filled
    return torch.from_numpy(np.ascontiguousarray(made.transpose(2, 0, 1))).to(image)


def dilated(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A mask, bool [H, W], grown by a disc of that radius."""
    if pixels == 0:
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    return cv2.dilate(mask.astype(np.uint8), disc).astype(bool)


def _harmonic(pixels: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Values for the hole, [n, 3]: each the mean of its neighbours inside the picture, the known ones as they are."""
    from scipy import sparse
    from scipy.sparse.linalg import splu

    n = int(hole.sum())
    number = np.full(hole.shape, -1)
    number[hole] = np.arange(n)
    around = np.pad(number, 1, constant_values=-2)  # -2: outside the picture, -1: known
    known = np.pad(pixels, ((1, 1), (1, 1), (0, 0)))
    rows, columns = np.nonzero(hole)
    degree, given, pairs = np.zeros(n), np.zeros((n, 3)), []
    for up, left in ((0, 1), (2, 1), (1, 0), (1, 2)):
        beside = around[rows + up, columns + left]
        degree += beside != -2
        edge = beside == -1
        given[edge] += known[rows + up, columns + left][edge]
        inner = np.nonzero(beside >= 0)[0]
        pairs.append((inner, beside[inner]))
    i, j = np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])
    laplacian = sparse.csc_matrix((-np.ones(len(i)), (i, j)), (n, n)) + sparse.diags(degree, format="csc")
    return splu(sparse.csc_matrix(laplacian)).solve(given).clip(0, 1).astype(np.float32)
