"""Dropout and stochastic depth that drop the same parts for the same example in every pass.

Reference: Herrmann, Sargent, Jiang, Zabih, Chang, Liu, Krishnan, Sun, "Pyramid adversarial training improves ViT
performance", CVPR 2022, arXiv:2111.15121 (matched dropout and stochastic depth).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from withstand.errors import bad
from withstand.random import Rows

_DEPTH = ("StochasticDepth", "DropPath")  # torchvision's and timm's, known by name so that neither is imported


@contextmanager
def matched_masks(model: nn.Module, rows: Rows, step: int = 0) -> Iterator[None]:
    """Passes inside draw their masks from (seed, example id, layer, step) alone, so all passes of an example share them.

    rows: one per row of the batch. A batch of k times as many rows is read as k copies of it one after the other, as in
    `cat([x, x_adversarial])`. Give each training step and each process another `step`, seed or ids. A layer that is
    called several times in one pass draws the same mask each time; functional dropout is not reached (that of torch's and
    timm's attention is refused).
    Covers torch.nn.Dropout*, AlphaDropout excepted, torchvision's StochasticDepth and timm's DropPath, in train mode, with
    their own rates and scaling; the global generators stay untouched and the layers are given back on the way out.

    Raises: BadInput for layers that cannot be matched (they are named) and, in the pass, for a batch of another length.
    """
    found = [(n, m, _mask(m)) for n, m in model.named_modules() if _random(m)]
    cannot = [f"{n} ({type(m).__name__})" for n, m, mask in found if mask is None]
    if cannot:
        raise bad(
            "model",
            ", ".join(cannot),
            "dropout and stochastic depth by row",
            "Set their rate to 0, or train unmatched.",
        )
    had = [m.__dict__.get("forward") for _, m, _ in found]
    try:
        for name, layer, mask in found:
            assert mask is not None
            layer.__dict__["forward"] = _matched(layer, mask, rows, f"mask {name}", step)
        yield
    finally:
        for (_, layer, _), old in zip(found, had):
            del layer.__dict__["forward"]
            if old is not None:
                layer.__dict__["forward"] = old


def _random(layer: nn.Module) -> bool:
    if isinstance(layer, nn.MultiheadAttention):
        return layer.dropout > 0
    if getattr(layer, "fused_attn", False):  # timm's: it reads the rate of its dropout and never calls it
        return getattr(getattr(layer, "attn_drop", None), "p", 0) > 0
    if isinstance(layer, _DropoutNd):
        return layer.p > 0
    return type(layer).__name__ in _DEPTH and bool(layer.drop_prob if hasattr(layer, "drop_prob") else layer.p)


# how a layer keeps: its rate of dropping, the shape of the mask of one example, whether what is kept is scaled up
_Keeping = tuple[float, Callable[[Tensor], tuple[int, ...]], bool]


def _mask(layer: nn.Module) -> _Keeping | None:
    match type(layer).__name__:
        case "Dropout":
            return layer.p, lambda x: tuple(x.shape[1:]), True  # pyright: ignore
        case "Dropout1d" | "Dropout2d" | "Dropout3d":
            return layer.p, lambda x: (x.shape[1], *[1] * (x.dim() - 2)), True  # pyright: ignore
        case "StochasticDepth" if layer.mode == "row":
            return layer.p, lambda x: (1,) * (x.dim() - 1), True  # pyright: ignore
        case "DropPath":
            return layer.drop_prob or 0.0, lambda x: (1,) * (x.dim() - 1), bool(layer.scale_by_keep)  # pyright: ignore
    return None


def _matched(layer: nn.Module, keeping: _Keeping, rows: Rows, stream: str, step: int) -> Callable[[Tensor], Tensor]:
    rate, shape, scales = keeping

    def forward(x: Tensor) -> Tensor:
        if not layer.training or rate == 0:
            return x
        copies, left = divmod(len(x), len(rows))
        if left or not copies:
            raise bad("rows", f"{len(rows)} for a batch of {len(x)}", "one for each row, or for each row of a copy")
        drawn = Rows(rows.seed, rows.ids.to(x.device)).uniform(shape(x), stream, step) >= rate
        mask = drawn.to(x.dtype) / (1 - rate if scales and rate < 1 else 1)
        return x * mask.repeat(copies, *[1] * (x.dim() - 1))

    return forward
