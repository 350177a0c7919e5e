"""The trainer: one loop for every recipe, with checkpoints, resume and distribution."""

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Trainer": "withstand.training.trainer",
    "Fitted": "withstand.training.trainer",
    "Moment": "withstand.training.trainer",
    "Recipe": "withstand.training.recipe",
    "Step": "withstand.training.recipe",
    "System": "withstand.training.recipe",
    "SGD": "withstand.training.optimizers",
    "Adam": "withstand.training.optimizers",
    "AdamW": "withstand.training.optimizers",
    "Constant": "withstand.training.optimizers",
    "Cosine": "withstand.training.optimizers",
    "Steps": "withstand.training.optimizers",
    "OneCycle": "withstand.training.optimizers",
    "EMA": "withstand.training.averaging",
    "SWA": "withstand.training.averaging",
    "CropFlip": "withstand.training.augment",
    "Mixup": "withstand.training.augment",
}

__all__ = [*_HOMES]

if TYPE_CHECKING:
    from withstand.training.augment import CropFlip as CropFlip
    from withstand.training.augment import Mixup as Mixup
    from withstand.training.averaging import EMA as EMA
    from withstand.training.averaging import SWA as SWA
    from withstand.training.optimizers import SGD as SGD
    from withstand.training.optimizers import Adam as Adam
    from withstand.training.optimizers import AdamW as AdamW
    from withstand.training.optimizers import Constant as Constant
    from withstand.training.optimizers import Cosine as Cosine
    from withstand.training.optimizers import OneCycle as OneCycle
    from withstand.training.optimizers import Steps as Steps
    from withstand.training.recipe import Recipe as Recipe
    from withstand.training.recipe import Step as Step
    from withstand.training.recipe import System as System
    from withstand.training.trainer import Fitted as Fitted
    from withstand.training.trainer import Moment as Moment
    from withstand.training.trainer import Trainer as Trainer


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'withstand.training' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
