"""Images with the masks of their objects, which come as a second set of images."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from withstand.data.photos import Photo, look
from withstand.errors import bad
from withstand.protocols import Batch, Dataset, Space


@dataclass(frozen=True)
class Masked:
    """A data set whose batches say in extra["object"], bool [N, H, W], where the object is: brighter than half in its mask.

    masks: for files, the masks of the same names (endings may differ), in one folder or in folders by class like the images;
    else the masks at the positions that are the images' ids.

    Raises: BadInput for an image without a mask, masks that share a name, and masks of another size; of files it is their
    own size that counts, since others would be cut out of another part of the picture.
    """

    data: Any
    masks: Any

    def __post_init__(self) -> None:
        if (ours := self.data.space.shape) and (theirs := self.masks.space.shape) and ours[1:] != theirs[1:]:
            allowed = f"{_size(ours)}, the size of the images"
            raise bad("masks", f"{_size(theirs)} pixels", allowed, "Give masks of the images as they are loaded.")
        self._places  # noqa: B018 - a missing mask is refused here, before any work

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def space(self) -> Space:
        return self.data.space

    @property
    def classes(self) -> tuple[str, ...]:
        return self.data.classes

    @property
    def labels(self) -> np.ndarray | None:
        return getattr(self.data, "labels", None)

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, positions: Sequence[int]) -> Batch:
        """The examples, with extra["object"]."""
        made = self.data.batch(positions)
        places = [int(self._places[int(p)]) for p in positions]
        self._refuse_other_sizes(positions, places)
        shares = self.masks.batch(places).x
        return Batch(
            made.x, made.y, made.ids, made.mask, {**made.extra, "object": (shares.mean(1) > 0.5).to(made.x.device)}
        )

    def _refuse_other_sizes(self, positions: Sequence[int], places: list[int]) -> None:
        images, masks = _photos(self.data, positions), _photos(self.masks, places)
        for image, mask in zip(images or (), masks or ()):
            (h, w), (height, width) = look(mask), look(image)
            if (h, w) != (height, width):
                raise bad(str(mask), f"{h} x {w} pixels", f"{height} x {width}, the size of {image}")

    def fingerprint(self) -> str:
        text = f"{self.data.fingerprint()} {self.masks.fingerprint()}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @cached_property
    def _places(self) -> np.ndarray:
        """Where the mask of each example lies among the masks."""
        images, masks = files(self.data), files(self.masks)
        if images is None or masks is None:
            ids = ids_of(self.data)
            at_id = {id_: at for at, id_ in enumerate(ids_of(self.masks).tolist())}
            if lacking := [id_ for id_ in ids.tolist() if id_ not in at_id]:
                raise bad("masks", f"{len(at_id)} masks, none for the image {lacking[0]}", "one mask for each image")
            return np.array([at_id[id_] for id_ in ids.tolist()], np.int64)
        known: dict[Any, int] = {}
        for at, path in enumerate(masks):
            if known.setdefault(path.stem, at) != at:
                known = {(p.parent.name, p.stem): i for i, p in enumerate(masks)}
                if len(known) < len(masks):
                    twice = Counter((p.parent.name, p.stem) for p in masks).most_common(1)[0][0]
                    raise bad("masks", f"several named {'/'.join(twice)}", "one mask for each image")
                break
        by_stem = all(isinstance(key, str) for key in known)
        keys = [p.stem if by_stem else (p.parent.name, p.stem) for p in images]
        if len(set(keys)) < len(keys):
            mend = "Lay the masks out in folders by class, as the images are."
            raise bad("masks", "a mask whose name several images have", "one mask for each image", mend)
        if lacking := [str(p) for p, key in zip(images, keys) if key not in known]:
            more = f" and {len(lacking) - 1} others" if len(lacking) > 1 else ""
            raise bad("masks", f"no mask for {lacking[0]}{more}", "a mask of the same name for each image")
        return np.array([known[key] for key in keys], np.int64)


def files(data: Dataset) -> list[Path] | None:
    """The file of each example, where the examples are files."""
    photos = _photos(data, range(len(data)))
    return None if photos is None else [Path(photo.file) for photo in photos]


def _photos(data: Any, positions: Sequence[int]) -> list[Photo] | None:
    """Of the examples at these positions, where they are files."""
    photos = getattr(getattr(data, "source", None), "photos", None)
    if photos is None:
        return None
    ids = ids_of(data)
    return [photos[int(ids[int(at)])] for at in positions]


def ids_of(data: Any) -> np.ndarray:
    """Of every example: its position in the whole set."""
    positions = getattr(data, "positions", None)
    if positions is not None:
        return np.asarray(positions)
    return np.concatenate([part.numpy() for part in _batches(data)]) if len(data) else np.zeros(0, np.int64)


def _batches(data: Dataset) -> Iterator[Tensor]:
    for at in range(0, len(data), 256):
        ids = data.batch(range(at, min(at + 256, len(data)))).ids
        yield torch.arange(at, min(at + 256, len(data))) if ids is None else ids


def _size(shape: tuple[int | None, ...]) -> str:
    return " x ".join(map(str, shape[1:]))
