"""Networks that find objects, by name: those of torchvision and transformers, with weights that are at hand."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from withstand.editing.masks import GrabCut, Segmenter, largest
from withstand.errors import BadInput, bad, missing_extra, unknown
from withstand.models.sources import made_by
from withstand.models.weights import load_weights, read_weights

NAMES = "grabcut, torchvision:NAME with weights, transformers:FOLDER, or FILE.py:FACTORY"
_SURE = 0.5  # score of an instance, and of its pixels, from which on it counts
_MEAN, _STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
_HEADS = ("classifier.4", "classifier.low_classifier", "roi_heads.box_predictor.cls_score")


def load_segmenter(
    spec: str, weights: str | PathLike[str] | None = None, wanted: str | int | None = None, allow_pickle: bool = False
) -> Segmenter:
    """The segmenter that a text names; nothing is downloaded.

    spec: "grabcut"; "torchvision:NAME", a segmentation or instance network (deeplabv3_resnet50, maskrcnn_resnet50_fpn,
    ...) with a file of weights; "transformers:FOLDER", a saved model for semantic or universal segmentation with its
    processor; "FILE.py:FACTORY", which returns a callable: image float [3, H, W] in [0, 1] -> mask [H, W].
    wanted: the class of the object (a number, or where the network names its classes a name); None: the largest object
    of any class but the background.
    Raises: BadInput or MissingExtra that says what to give instead.
    """
    kind, _, rest = spec.partition(":")
    if weights is not None and kind != "torchvision":
        raise bad("segmenter weights", weights, f"none for {spec}", "Only torchvision:NAME takes a file of weights.")
    if kind == "torchvision":
        return _torchvision(rest, weights, wanted, allow_pickle)
    if kind == "transformers":
        return _transformers(rest, wanted)
    if wanted is not None:
        raise bad("object", repr(wanted), f"none for {spec}, which knows no classes")
    if spec == "grabcut":
        return GrabCut()
    if ".py" in spec:
        end = spec.rfind(".py") + 3
        made, _ = made_by((spec[:end], spec[end + 1 :]))
        if not callable(made):
            raise bad(spec, f"a {type(made).__name__}", "a factory that returns a callable image -> mask")
        return made
    raise bad("segmenter", repr(spec), NAMES)


@dataclass(frozen=True)
class ByClasses:
    """A network that says of each pixel which class it is of.

    network: images [1, 3, H, W] -> scores [1, K, h, w], or a mapping with them under "out" or "logits". wanted: all of that
    class is the object; None: the largest connected part of one class, other than the background. background: its class,
    None where there is none. normalise: with ImageNet's mean and deviation.
    """

    network: nn.Module
    wanted: int | None = None
    background: int | None = 0
    normalise: bool = True

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        x = image[None].float()
        if self.normalise:
            x = (x - _MEAN.to(x.device)[:, None, None]) / _STD.to(x.device)[:, None, None]
        found = self.network(x)
        scores = found if isinstance(found, Tensor) else found["out" if "out" in found else "logits"]
        scores = interpolate(scores.float(), image.shape[1:], mode="bilinear", align_corners=False)
        return self.choose(scores[0].argmax(0).cpu())

    def choose(self, classes: Tensor) -> Tensor:
        """The object in a map of classes, int64 [H, W]."""
        if self.wanted is not None:
            return classes == self.wanted
        parts = [largest(classes == k) & (classes == k) for k in classes.unique().tolist() if k != self.background]
        return max(parts, key=lambda part: int(part.sum()), default=torch.zeros_like(classes, dtype=torch.bool))


@dataclass(frozen=True)
class ByInstances:
    """A network that finds instances, as torchvision's: list of images -> list of {labels, scores, masks [n, 1, H, W]}.

    wanted: all instances of that class together are the object; None: the largest instance. Those with a score below 0.5
    do not count.
    """

    network: nn.Module
    wanted: int | None = None

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        found = self.network([image.float()])[0]
        chosen = found["scores"] >= _SURE
        if self.wanted is not None:
            chosen &= found["labels"] == self.wanted
        masks = found["masks"][chosen][:, 0].cpu() > _SURE
        if not len(masks):
            return torch.zeros(image.shape[1:], dtype=torch.bool)
        return masks.any(0) if self.wanted is not None else masks[masks.sum((1, 2)).argmax()]


@dataclass(frozen=True)
class ByProcessor:
    """A model of transformers with its image processor, for semantic or universal segmentation."""

    network: Any
    processor: Any
    wanted: int | None = None
    background: int | None = None

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        from torchvision.transforms.functional import to_pil_image

        given = self.processor(images=to_pil_image(image.cpu()), return_tensors="pt")
        found = self.network(**given.to(next(self.network.parameters()).device))
        classes = self.processor.post_process_semantic_segmentation(found, target_sizes=[tuple(image.shape[1:])])[0]
        return ByClasses(self.network, self.wanted, self.background).choose(classes.cpu())


def _torchvision(name: str, weights: str | PathLike[str] | None, wanted: Any, allow_pickle: bool) -> Segmenter:
    from torchvision.models import detection, get_model, list_models, segmentation

    known = [
        n for n in list_models(segmentation) + list_models(detection) if "mask" in n or n in list_models(segmentation)
    ]
    if name not in known:
        raise unknown("segmenter: network of torchvision", name, known)
    if weights is None:
        raise bad("segmenter weights", None, f"a file of weights for torchvision:{name}", "Nothing is downloaded here.")
    number = None if wanted is None else _number(wanted)
    state = read_weights(weights, allow_pickle)
    heads = [state[f"{head}.weight"].shape[0] for head in _HEADS if f"{head}.weight" in state]
    options: dict[str, Any] = {"num_classes": heads[0]} if heads else {}
    if name in list_models(segmentation) and any(key.startswith("aux_classifier.") for key in state):
        options["aux_loss"] = True
    network = get_model(name, weights=None, weights_backbone=None, **options)
    load_weights(network, state, str(weights))
    network.eval().requires_grad_(False)
    return ByClasses(network, number) if name in list_models(segmentation) else ByInstances(network, number)


def _transformers(folder: str, wanted: Any) -> Segmenter:
    if not Path(folder).is_dir():
        raise bad("segmenter", f"transformers:{folder}", "the folder of a saved model", "Nothing is downloaded here.")
    try:
        from transformers import (
            AutoImageProcessor,
            AutoModelForSemanticSegmentation,
            AutoModelForUniversalSegmentation,
        )
    except ImportError:
        raise missing_extra("transformers", "hf", "A segmenter of transformers") from None
    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        try:
            network = AutoModelForSemanticSegmentation.from_pretrained(folder, local_files_only=True)
        except ValueError:  # a model that segments in several ways
            network = AutoModelForUniversalSegmentation.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"segmenter: transformers:{folder} is no model for segmentation: {error}") from None
    names: Mapping[int, str] = network.config.id2label or {}
    background = next((k for k, n in names.items() if n.lower() == "background"), None)
    if isinstance(wanted, str) and not wanted.isdecimal():
        by_name = {n: k for k, n in names.items()}
        if wanted not in by_name:
            raise unknown("object: class", wanted, by_name)
        wanted = by_name[wanted]
    if wanted is None and background is None:
        raise bad("object", None, f"a class of {folder}, which has none for the background", "Say what the object is.")
    number = None if wanted is None else _number(wanted)
    return ByProcessor(network.eval().requires_grad_(False), processor, number, background)


def _number(wanted: str | int) -> int:
    if isinstance(wanted, int) or wanted.isdecimal():
        return int(wanted)
    raise bad("object", repr(wanted), "the number of a class", "These networks do not name their classes.")
