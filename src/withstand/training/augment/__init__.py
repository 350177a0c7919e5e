"""Augmentations: batched on tensors, drawn per example, the same on every device and in every order."""

from typing import Annotated, Any

from pydantic import PlainValidator

from withstand.errors import bad
from withstand.registry import coerce
from withstand.training.augment.crop import CropFlip as CropFlip
from withstand.training.augment.crop import crop_flip as crop_flip
from withstand.training.augment.ctaugment import CTAugment as CTAugment
from withstand.training.augment.cutout import Cutout as Cutout
from withstand.training.augment.mixup import Mixup as Mixup
from withstand.training.augment.mixup import as_shares as as_shares
from withstand.training.augment.mixup import mix as mix
from withstand.training.augment.mixup import pairs as pairs
from withstand.training.augment.noise import Noise as Noise
from withstand.training.augment.photometric import Light as Light
from withstand.training.augment.randaugment import RandAugment as RandAugment
from withstand.training.augment.warp import Affine as Affine


def _augmentations(value: Any) -> tuple[Any, ...]:
    items = value if isinstance(value, (list, tuple)) else (value,)
    made = tuple(coerce("augmentation")(item) for item in items)
    for item in made:
        if not callable(item):
            raise bad("augment", repr(item), "augmentations or their text, e.g. 'crop_flip(padding=4)'")
    return made


AugmentationsField = Annotated[tuple[Any, ...], PlainValidator(_augmentations)]
