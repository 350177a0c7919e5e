"""Edits of one attribute of the object in an image: its size, place, direction, or what lies behind it."""

from withstand.editing.adversarial import Adversarial
from withstand.editing.contract import EditResult, Painter
from withstand.editing.diffusion import DiffusersPainter
from withstand.editing.dropped import dropped_accuracy
from withstand.editing.editor import ObjectEditor
from withstand.editing.folder import edit
from withstand.editing.imagenet_e import build_imagenet_e
from withstand.editing.inpaint import remove_object
from withstand.editing.masks import GrabCut, as_mask
from withstand.editing.procedural import texture
from withstand.editing.segmenters import load_segmenter
from withstand.editing.spectrum import Spectral, complexity

__all__ = [
    "Adversarial",
    "DiffusersPainter",
    "EditResult",
    "GrabCut",
    "ObjectEditor",
    "Painter",
    "Spectral",
    "as_mask",
    "build_imagenet_e",
    "complexity",
    "dropped_accuracy",
    "edit",
    "load_segmenter",
    "remove_object",
    "texture",
]
