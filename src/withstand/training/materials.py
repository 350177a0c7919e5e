"""What a training is given: the model to begin with, and examples to learn from and to hold out."""

from typing import Any

import numpy as np
from torch import nn

from withstand.data import as_dataset, load_data
from withstand.data.images import stratified
from withstand.errors import bad
from withstand.models import as_target, load_model
from withstand.protocols import Dataset, Target
from withstand.random import derive


def materials(model: Any, data: Any, scratch: bool = False) -> tuple[Target, nn.Module, Dataset]:
    """The target, its module and the examples of whatever a user gave.

    model: what `load_model` reads, a target, or a module. data: a data set, or what `load_data` reads (its training part).
    scratch: for a text, begin with fresh weights (networks of the zoo, which have no published ones, always do).

    Raises: BadInput for a model without gradients.
    """
    examples = load_data(data, split="train") if isinstance(data, str) else as_dataset(data)
    target = untrained_or_loaded(model, scratch, examples) if isinstance(model, str) else as_target(model)
    if target.module is None:
        raise bad("model", target.name, "a torch model", "What only answers queries cannot be trained.")
    return target, target.module, examples


def untrained_or_loaded(spec: str, scratch: bool, data: Dataset) -> Target:
    """The model of a text: with fresh weights for as many classes as the data has, or with those that it comes with."""
    if spec.startswith("zoo:") or scratch:
        options: dict[str, Any] = {} if ".py" in spec else {"pretrained": False}
        return load_model(spec, classes=len(data.classes) or None, **options)
    return load_model(spec)


def split(data: Dataset, validation: Dataset | float | None, seed: int) -> tuple[Dataset, Dataset | None]:
    """The examples to learn from, and those that are held out."""
    if validation is None or validation == 0:
        return data, None
    if not isinstance(validation, (int, float)):
        return data, as_dataset(validation)
    if not 0 < validation < 1:
        raise bad("validation", validation, "a share of the examples between 0 and 1, a data set, or None")
    if not hasattr(data, "subset"):
        raise bad("validation", validation, "a data set, for data that cannot be split", "Or None.")
    order = stratified(getattr(data, "labels", None), len(data), derive(seed, "validation split") & 0x7FFFFFFF)
    count = max(1, round(validation * len(data)))
    return data.subset(np.sort(order[count:])), data.subset(np.sort(order[:count]))  # type: ignore[attr-defined]
