"""Hashing models: images to K real numbers whose signs are a binary code."""

from typing import Any

import torch
from torch import Tensor, nn

from withstand.errors import bad


class Hasher(nn.Module):
    """Images to u = tanh(F(x)) in (-1, 1), [N, K], F a backbone with a linear head; the code is the sign, 1 for 0.

    backbone: images to features [N, width]; normalisation lives in it. bits: K. The submodule `head` returns F(x), which
    attacks read that soften the tanh. `codes(x)` returns the codes. The tanh is taken in single precision at least: in
    bfloat16 it is 1 from F = 3.5 on, where neither a loss nor an attack would have a gradient any more.

    The head begins without a bias and with weights of deviation 0.64 / sqrt(width): that is the 0.01 of the official code
    for its width of 4096. Narrower features with 0.01 would begin with outputs so near zero that pairwise losses, whose
    gradients are products of outputs, stand still.
    """

    def __init__(self, backbone: nn.Module, width: int, bits: int) -> None:
        super().__init__()
        if bits < 1:
            raise bad("bits", bits, "a whole number >= 1")
        self.backbone, self.bits = backbone, bits
        self.head = nn.Linear(width, bits)
        nn.init.normal_(self.head.weight, 0.0, 0.64 / width**0.5)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        reals = self.head(self.backbone(x))
        return torch.tanh(reals.float() if reals.dtype in {torch.float16, torch.bfloat16} else reals)

    def codes(self, x: Tensor) -> Tensor:
        """Codes in {-1, 1}, [N, K]."""
        return torch.where(self(x) >= 0, 1.0, -1.0)


def hasher_in(model: Any) -> tuple[str, Hasher] | None:
    """The name and the module of the `Hasher` in a module or a target; None where there is none."""
    module = model if isinstance(model, nn.Module) else getattr(model, "module", None)
    parts = module.named_modules() if isinstance(module, nn.Module) else ()
    return next(((name, part) for name, part in parts if isinstance(part, Hasher)), None)
