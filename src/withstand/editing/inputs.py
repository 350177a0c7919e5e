"""Pictures and masks on disk: found, looked at before any work, and read."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from withstand.data.folders import folder_source, image_files
from withstand.data.photos import SUFFIXES, Fit, Photo, each, look, opened
from withstand.editing.masks import as_mask
from withstand.errors import BadInput, bad

_ORIENTATION = 0x0112
_WORDNET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Picture:
    """One input. name: its path below the folder, with / between parts. file, mask: where it and its mask lie, mask
    None where none is given. label: its class, where class folders say it."""

    name: str
    file: Path
    mask: Path | None = None
    label: int | None = None

    @property
    def made(self) -> str:
        """Its name as a PNG file."""
        return str(Path(self.name).with_suffix(".png"))

    @cached_property
    def key(self) -> str:
        """What random draws depend on: the bytes of the file, so that it is edited alike under any name and in any
        company."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()[:16]

    def read(self) -> tuple[Tensor, str]:
        """Float [3, H, W] in [0, 1], turned upright, and what had to be done for it."""
        image = opened(Photo(str(self.file)))
        notes = ["the first picture of several in the file"] if image.format == "MPO" else []
        if _orientation(image) != 1:
            notes.append("turned upright, as its EXIF tag says")
            image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            notes.append("transparency left out")
        if (mode := image.mode.rstrip("Aa")) != "RGB":
            notes.append({"L": "grey", "1": "grey", "P": "palette"}.get(mode, mode) + " made RGB")
        pixels = np.asarray(image.convert("RGBA").convert("RGB") if mode == "P" else image.convert("RGB"))
        return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32)) / 255, "; ".join(notes)

    def read_mask(self, height: int, width: int) -> Tensor | None:
        """Bool [height, width]. Raises: BadInput for a mask of another size, of other values, or with transparency."""
        if self.mask is None:
            return None
        held = opened(Photo(str(self.mask)))
        if held.has_transparency_data and held.convert("RGBA").getchannel("A").getextrema() != (255, 255):
            raise bad(
                str(self.mask), "a mask with transparency", "the object white, all else black, nothing transparent"
            )
        upright = ImageOps.exif_transpose(held) if _orientation(held) != 1 else held
        return as_mask(np.asarray(upright.convert("L")), height, width, str(self.mask))

    def digest(self) -> bytes:
        """Of what the files hold at both ends, and the name."""
        ends = [Photo(str(f)).ends() for f in (self.file, self.mask) if f is not None]
        return b"\0".join([self.name.encode(), *(part for size, *two in ends for part in (str(size).encode(), *two))])


def find_pictures(
    images: str | Path, masks: str | Path | None = None, labelled: bool = False, classes: int | None = None
) -> list[Picture]:
    """All pictures of a file or of a folder, in the order of their names, each looked at.

    masks: a folder with a mask for each, in the same subfolder, under the same name up to its ending; or the mask of a
    single picture. labelled: each must have a class, by class folders or a labels.csv (see `folder_source`; subfolders
    with WordNet ids mean ImageNet's classes where there are 1,000 `classes`).
    Raises: BadInput before any work: nothing there, files that are no images, damaged, animated or with more than 8 bits
    per channel, two that would be written to one file, masks that are missing or of another size. All are named.
    """
    place = Path(images).expanduser()
    if not place.exists():
        raise bad("images", place, "an existing file or folder of images")
    if place.is_file():
        if place.suffix.lower() not in SUFFIXES:
            raise bad("images", place, f"an image: {', '.join(sorted(SUFFIXES))}")
        if labelled:
            raise bad("images", place, "a folder with a subfolder for each class", "A single file has no label.")
        found = [Picture(place.name, place)]
    else:
        labels = _labels(place, classes) if labelled else {}
        files = list(labels) if (place / "labels.csv").is_file() and labelled else _files(place)
        found = [Picture(f.as_posix(), place / f, label=labels.get(f)) for f in files]
    if not found:
        raise bad("images", f"{place}, an empty folder", "at least one image")
    made: dict[str, str] = {}
    if twice := [(made[p.made], p.name) for p in found if made.setdefault(p.made, p.name) != p.name]:
        raise bad(
            "images", " and ".join(twice[0]), "names that differ before their ending", "Both would become one PNG."
        )
    if masks is not None:
        found = _with_masks(found, Path(masks).expanduser(), place.is_file())
    problems = [p for p in each(lambda i: _problem(found[i]), np.arange(len(found)), "looking at the images") if p]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise BadInput("; ".join(problems[:5]) + more)
    return found


def _files(folder: Path) -> list[Path]:
    """All images of a folder; a labels.csv beside them is no stranger."""
    if not (folder / "labels.csv").is_file():
        return image_files(folder)
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    return sorted(p for p in found if not any(part.startswith(".") for part in p.parts))


def _labels(folder: Path, classes: int | None) -> dict[Path, int]:
    subfolders = [p.name for p in folder.iterdir() if p.is_dir()]
    imagenet = classes == 1000 and bool(subfolders) and all(map(_WORDNET.fullmatch, subfolders))
    source = folder_source(folder, "test", Fit(), "imagenet" if imagenet else None)
    if source.labels is None:
        raise bad("images", f"{folder} without classes", "a subfolder for each class", "A guide needs the true class.")
    return {Path(p.file).relative_to(folder): int(k) for p, k in zip(source.photos, source.labels)}


def _with_masks(found: list[Picture], masks: Path, single: bool) -> list[Picture]:
    if not masks.exists():
        raise bad("masks", masks, "an existing folder of masks, or the mask of a single image")
    if masks.is_file():
        if not single:
            raise bad("masks", f"the file {masks}", "a folder with a mask for each image")
        return [Picture(p.name, p.file, masks, p.label) for p in found]
    known: dict[Path, Path] = {}
    for file in sorted(masks.rglob("*"), key=lambda p: (p.suffix.lower() != ".png", p)):
        if file.suffix.lower() in SUFFIXES:
            known.setdefault(file.relative_to(masks).with_suffix(""), file)
    if missing := [p.name for p in found if Path(p.name).with_suffix("") not in known]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        mend = "Masks have the images' names; leave --masks out to have objects looked for."
        raise bad("masks", f"{masks} without a mask for {', '.join(missing[:5])}{more}", "one for each image", mend)
    return [Picture(p.name, p.file, known[Path(p.name).with_suffix("")], p.label) for p in found]


def _problem(picture: Picture) -> str:
    """What keeps a picture or its mask from being edited; "" where nothing does."""
    try:
        size = _upright_size(picture.file)
        if picture.mask is not None and (other := _upright_size(picture.mask)) != size:
            got, allowed = (f"{h} x {w} pixels" for h, w in (other, size))
            raise bad(str(picture.mask), got, f"{allowed}, the size of {picture.name}")
        picture.read_mask(*size)
    except BadInput as problem:
        return str(problem)
    return ""


def _upright_size(file: Path) -> tuple[int, int]:
    height, width = look(Photo(str(file)))
    with Image.open(file) as image:
        held: Any = image
        # telephones append a preview to their JPEG, which makes it an MPO; its first picture is the photograph
        if held.format != "MPO" and getattr(held, "n_frames", 1) > 1:
            raise bad(str(file), f"an animation of {held.n_frames} frames", "a still image", "Save the frame you mean.")
        # either of which would be cut down to 8 bits without a word
        how = held.tile[0][3] if held.tile else ""
        levels = how[-1] if held.format == "PPM" and isinstance(how, tuple) else 255
        if ";16" in str(held.tile) or (isinstance(levels, int) and levels > 255):
            raise bad(str(file), "more than 8 bits per channel", "8-bit images", "Convert it, e.g. to 8-bit PNG.")
        if held.format == "PNG":
            opened(Photo(str(file)))  # its tags may stand after the pixels, so that reading them decodes it anyway
        turned = _orientation(image) >= 5
    return (width, height) if turned else (height, width)


def _orientation(image: Image.Image) -> int:
    """1 to 8, as its EXIF tag says; 1 where there is none, or none that means anything."""
    try:
        tag = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged tags raise SyntaxError, ValueError, struct.error, ...; the pixels may be whole
        return 1
    return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1


class OtherScenes:
    """The other pictures of a folder, as scenes to put an object into: pairs (picture, mask or None), read when asked
    for."""

    def __init__(self, pictures: list[Picture], but: Picture, read: Callable[[Picture], Any]) -> None:
        self.pictures, self.read = [p for p in pictures if p is not but], read

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, position: int) -> Any:
        return self.read(self.pictures[position])
