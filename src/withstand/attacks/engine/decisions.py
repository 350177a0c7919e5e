"""What a decision-based attack sees of a model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from withstand.attacks.engine.outputs import as_tensor
from withstand.errors import bad


class Decisions:
    """A model of which only the decision is seen: one-hot rows [N, K], whether it returns logits [N, K] or labels [N].

    Where it returns labels, there are as many columns as its space names, and enough for y and a target class.
    """

    def __init__(self, model: Callable[[Tensor], Any], y: Tensor | None = None, target: Any = None) -> None:
        known = [getattr(getattr(model, "space", None), "classes", None) or 2]
        known += [int(torch.as_tensor(v).max()) + 1 for v in (y, target) if v is not None and known == [2]]
        self.model, self.classes = model, max(known)

    def __call__(self, x: Tensor) -> Tensor:
        output = as_tensor(self.model(x), x)
        if isinstance(output, Tensor) and output.dim() == 1 and not output.is_floating_point():
            if len(output) != len(x) or int(output.min()) < 0:
                raise bad("model", f"labels {output.tolist()[:8]} for {len(x)} inputs", "one class index >= 0 for each")
            labels, width = output.long(), max(self.classes, int(output.max()) + 1)
        elif isinstance(output, Tensor) and output.dim() == 2 and bool(torch.isfinite(output).all()):
            labels, width = output.argmax(1), output.shape[1]
        else:
            return output  # the engine says what is wrong with it
        return torch.nn.functional.one_hot(labels, width).to(x.dtype)
