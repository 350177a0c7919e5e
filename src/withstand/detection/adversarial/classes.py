"""What detectors that know classes ask of the trusted examples."""

import torch
from torch import Tensor

from withstand.errors import bad


def class_labels(y: Tensor | None, logits: Tensor, least: int) -> Tensor:
    """Labels [M] on the logits' device. Raises BadInput where any of the K classes has fewer than `least` examples."""
    if y is None:
        raise bad("labels", None, f"the class of each of the {len(logits)} trusted examples")
    if y.dim() != 1 or len(y) != len(logits) or y.is_floating_point():
        raise bad("labels", f"{y.dtype} {tuple(y.shape)}", f"whole numbers [{len(logits)}]")
    y, classes = y.to(logits.device).long(), logits.shape[1]
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise bad("labels", f"{int(y.min())} to {int(y.max())}", f"0 to {classes - 1}, the model's classes")
    counts = torch.bincount(y, minlength=classes)
    if int(counts.min()) < least:
        raise bad(
            "data",
            f"{int(counts.min())} trusted examples of class {int(counts.argmin())}",
            f"at least {least} of each of the {classes} classes",
            'Give more examples, e.g. a data set of their own as "train".',
        )
    return y
