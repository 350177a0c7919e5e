"""`ObjectEditor`: edits of one attribute of an object, and chains of them, each image alike whatever comes with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Generator, Tensor

from withstand.editing.contract import EditResult, Painter
from withstand.editing.inpaint import Filling, remove_object
from withstand.editing.masks import GrabCut, Segmenter, as_mask, fault
from withstand.editing.procedural import texture
from withstand.editing.spectrum import Spectral, complexity
from withstand.editing.transforms import CannotMeet, Placement, Variant, check_rate, move, resize, room, turn
from withstand.errors import bad, unknown
from withstand.random import derive

Kind = Literal["identity", "background", "random_background", "size", "position", "direction"]
Step = tuple[str, Mapping[str, Any]]
_DEFAULTS: dict[str, dict[str, Any]] = {
    "identity": {},
    "background": {"complexity": 20.0, "remove": True},
    "random_background": {},
    "size": {"rate": 0.05},
    "position": {"at": "random"},
    "direction": {"degrees": 45},
}
_WIDEST = 45  # degrees to either side, of a direction that is drawn


@dataclass(frozen=True)
class ObjectEditor:
    """Edits the object of an image, or what lies behind it; everything else stays.

    painter: what `background` paints with. segmenter: finds the object where no mask is given (image -> mask), by default
    `GrabCut`. seed: of everything random, which depends on it and on the image's key alone, not on other images. variant:
    "exact" resizes to within 5 % of the rate, turns about the object's middle and never cuts it; "published" follows the
    paper: within 0.015, about the picture's middle, cutting what leaves the picture. filling: how removed objects are
    filled, see `remove_object`.

    What does not fit an image comes back as skipped, with the reason. Edges are hard and shadows stay where they were.

    >>> image, mask = torch.rand(3, 64, 64), torch.zeros(64, 64, dtype=torch.bool)
    >>> mask[20:40, 10:30] = True
    >>> found = ObjectEditor().edit(image, mask, "size", rate=0.05)
    >>> abs(found.rate - 0.05) <= 0.05 * 0.05
    True

    Reference: Li et al., "ImageNet-E: Benchmarking Neural Network Robustness via Attribute Editing", 2023,
    arXiv 2303.17096. There a diffusion model paints; object removal by a trained network is opencv's inpainting here. Of
    the published stages one thing is read from the released code: the zoomed picture lends its object only, and behind it
    lies the picture without object at its own size.
    """

    painter: Painter = field(default_factory=Spectral)
    segmenter: Segmenter | None = None
    seed: int = 0
    variant: Variant = "exact"
    filling: Filling = "telea"

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise unknown("variant", self.variant, get_args(Variant))
        if self.filling not in get_args(Filling):
            raise unknown("filling", self.filling, get_args(Filling))

    def find(self, image: Tensor, mask: Any) -> tuple[Tensor, str]:
        """The object, bool [H, W], and why nothing can be edited where it was looked for in vain, else "".

        Raises: BadInput for a given mask that is unusable.
        """
        height, width = image.shape[1:]
        if mask is not None:
            given = as_mask(mask, height, width).to(image.device)
            if problem := fault(given):
                raise bad("mask", problem, "an object of 0.5 % to 90 % of the image")
            return given, ""
        found = as_mask((self.segmenter or GrabCut())(image), height, width, "what the segmenter found")
        problem = fault(found)
        return found.to(image.device), problem and f"no object found: {problem}"

    def edit(
        self,
        image: Tensor,
        mask: Any = None,
        kind: str = "background",
        key: int | str = 0,
        label: int | None = None,
        others: Sequence[Any] = (),
        **params: Any,
    ) -> EditResult:
        """One edit.

        image: float [3, H, W] in [0, 1]. mask: where the object is (see `as_mask`); None: it is looked for. key: names
        the image for what is drawn at random. label: the true class, for painters that lead a classifier astray.

        kind, params:
        identity: the object is taken out, what was behind it filled in, and the object put back: the control for what all
            other edits do besides. The object's pixels stay bit for bit, as in every edit that does not resample it.
        background, complexity=20.0: painted anew, above 0 busier, below 0 plainer. remove=False: the object stays in the
            picture while it is painted (and is put back over it); with complexity 0 nothing changes at all then.
        random_background: one of `others`, else a procedural texture. others: pictures [3, h, w] that need no removal, or
            pairs (picture, mask), whose object is taken out, mask None being looked for, and which are passed over if
            none is found; brought to size by covering.
        size, rate=0.05: that share of the picture, or "full". See `resize`.
        position, at="random" or (row, column) of the upper left corner of its box. See `move`.
        direction, degrees=45, counter-clockwise, or "random": 1 to 45 to either side. See `turn`.

        Raises: BadInput for an image, mask or parameter that cannot be meant; what this image does not allow, among it that
        no object is found, is no error but a result that is skipped.
        """
        return self.edits(image, mask, [(kind, params)], key, label, others)

    def edits(
        self,
        image: Tensor,
        mask: Any,
        steps: Sequence[Step],
        key: int | str = 0,
        label: int | None = None,
        others: Sequence[Any] = (),
    ) -> EditResult:
        """Several edits of one image, [(kind, params), ...]: those of the object in order, then those of the background.

        The object is resampled once, however many of them change it. Where one cannot be met, all are skipped.
        """
        chain = check_steps(steps)
        check_image(image)
        image = image.detach().float()
        found, problem = self.find(image, mask)
        if problem:
            return _skipped(image, found, problem)
        draws = _Draws(self.seed, key)
        try:
            placed = self._place(found, chain, draws)
            front, shape, scene = self._compose(image, found, placed, chain)
            for kind, params in chain:
                if kind == "random_background":
                    scene = self._other(others, image, draws(kind))
                elif kind == "background":
                    scene = self.painter.paint(scene, front, shape, params["complexity"], draws(kind), label)
                front = torch.where(shape, front, scene)
        except CannotMeet as reason:
            return _skipped(image, found, str(reason))
        return EditResult(front, shape, float(shape.double().mean()), complexity(front))

    def _place(self, mask: Tensor, chain: list[tuple[str, dict[str, Any]]], draws: "_Draws") -> Placement:
        at = Placement.as_it_is(mask.cpu().numpy())
        for kind, params in chain:
            if kind == "size":
                at = resize(at, params["rate"], self.variant)
            elif kind == "direction":
                degrees = params["degrees"]
                at = turn(at, draws.degrees() if degrees == "random" else degrees, self.variant)
            elif kind == "position":
                at = move(at, *(draws.place(room(at)) if params["at"] == "random" else params["at"]))
        return at

    def _compose(
        self, image: Tensor, mask: Tensor, placed: Placement, chain: list[tuple[str, dict[str, Any]]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The picture with the object in its place, where that is, and what lies behind it."""
        behind = any(kind in ("identity", "random_background") or params.get("remove") for kind, params in chain)
        if not placed.moved and not behind:
            return image, mask, image
        scene = remove_object(image, mask, self.filling)
        if not placed.moved:
            return torch.where(mask, image, scene), mask, scene
        patch = placed.cut_out(_pixels(image))
        front = torch.from_numpy(np.ascontiguousarray(patch.paste(_pixels(scene)).transpose(2, 0, 1))).to(image)
        shape = torch.from_numpy(patch.mask(*mask.shape)).to(mask.device)
        return front, shape, scene

    def _other(self, others: Sequence[Any], image: Tensor, generator: Generator) -> Tensor:
        """One of the others without its object; the next one where that is not found, a texture where none is."""
        height, width = image.shape[1:]
        first = int(torch.randint(len(others), (), generator=generator)) if len(others) else 0
        for i in range(len(others)):
            chosen = others[(first + i) % len(others)]
            picture, mask = (chosen, None) if isinstance(chosen, Tensor) else chosen
            check_image(picture, "others")
            if not isinstance(chosen, Tensor):
                found, problem = self.find(picture, mask)
                if problem:
                    continue
                picture = remove_object(picture, found, self.filling)
            return _covering(picture, height, width).to(image)
        return texture(height, width, generator).to(image)


class _Draws:
    """What is random in the edits of one image; each kind draws from a stream of its own, so that adding an edit changes
    no other one."""

    def __init__(self, seed: int, key: int | str) -> None:
        self.seed, self.key, self.count = seed, key, {}

    def __call__(self, kind: str) -> Generator:
        self.count[kind] = self.count.get(kind, 0) + 1
        return Generator().manual_seed(derive(self.seed, "edit", self.key, kind, self.count[kind]))

    def degrees(self) -> int:
        g = self("direction")
        size, side = (int(torch.randint(n, (), generator=g)) for n in (_WIDEST, 2))
        return (1 + size) * (1 if side else -1)

    def place(self, room: tuple[int, int]) -> tuple[int, int]:
        g = self("position")
        row, column = (int(torch.randint(n, (), generator=g)) for n in room)
        return row, column


def check_steps(steps: Sequence[Step]) -> list[tuple[str, dict[str, Any]]]:
    """The steps with every parameter. Raises: BadInput for an unknown kind or parameter, and for bad values."""
    made = []
    for kind, params in steps:
        if kind not in _DEFAULTS:
            raise unknown("kind of edit", kind, _DEFAULTS)
        for name in params:
            if name not in _DEFAULTS[kind]:
                raise unknown(f"{kind}: parameter", name, _DEFAULTS[kind])
        full = _DEFAULTS[kind] | dict(params)
        if kind == "size":
            check_rate(full["rate"])
        elif kind == "position":
            _check_place(full["at"])
        elif kind == "direction" and full["degrees"] != "random":
            _check_number("degrees", full["degrees"], 'a number of degrees, counter-clockwise, or "random"')
        elif kind == "background":
            _check_number("complexity", full["complexity"], "a finite number, e.g. -20 (plainer) or 20 (busier)")
            if not isinstance(full["remove"], bool):
                raise bad("remove", repr(full["remove"]), "True or False")
        made.append((kind, full))
    if not made:
        raise bad("steps", "none", "at least one (kind, parameters)")
    return made


def _check_number(name: str, value: Any, allowed: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise bad(name, repr(value), allowed)


def _check_place(at: Any) -> None:
    pair = isinstance(at, (tuple, list)) and len(at) == 2
    if at != "random" and not (pair and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in at)):
        raise bad("at", repr(at), '"random", or (row, column) of the upper left corner of the object\'s box, in pixels')


def check_image(image: Any, name: str = "image") -> None:
    """Raises: BadInput for anything but float [3, H, W] in [0, 1]."""
    if not isinstance(image, Tensor):
        raise bad(name, type(image).__name__, "a tensor [3, H, W] of floats in [0, 1]")
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise bad(name, f"shape {list(image.shape)}", "[3, H, W]", "Repeat a grey image's channel three times.")
    if not image.is_floating_point():
        raise bad(name, f"dtype {image.dtype}", "floats in [0, 1]", "Divide 8-bit values by 255.")
    low, high = torch.aminmax(image)
    if not (low >= 0 and high <= 1):  # false for NaN too
        raise bad(name, f"values from {float(low):g} to {float(high):g}", "floats in [0, 1]")


def _skipped(image: Tensor, mask: Tensor, reason: str) -> EditResult:
    return EditResult(image, mask, float(mask.double().mean()), complexity(image), True, reason)


def _pixels(image: Tensor) -> np.ndarray:
    return image.detach().float().cpu().numpy().transpose(1, 2, 0)


def _covering(scene: Tensor, height: int, width: int) -> Tensor:
    """The middle of a picture that is made as large as it must be to cover height x width."""
    h, w = scene.shape[1:]
    zoom = max(height / h, width / w)
    size = [max(height, round(h * zoom)), max(width, round(w * zoom))]
    if size != [h, w]:
        scene = torch.nn.functional.interpolate(scene[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return scene[:, top : top + height, left : left + width]
