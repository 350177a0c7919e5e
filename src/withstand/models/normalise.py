"""Which mean and standard deviation a model wants its channels normalised with."""

from collections.abc import Sequence
from typing import Any

from withstand.errors import bad

Pair = tuple[tuple[float, ...], tuple[float, ...]]
PRESETS: dict[str, Pair | None] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "half": ((0.5,), (0.5,)),
    "none": None,
}


def normalisation(mean: Any, std: Any, known: Pair | None, channels: int | None) -> tuple[Pair | None, tuple[str, ...]]:
    """Mean and std (None: the model takes images in [0, 1] as they are), and a note where the source's own were taken.

    mean, std: numbers, or names of presets (one name serves both). known: what the source says.
    Raises: BadInput for one without the other, unknown names, wrong lengths, values not in units of [0, 1].
    """
    if mean is None and std is None:
        if known is None:
            return None, ()
        values = f"mean {_short(known[0])}, std {_short(known[1])}"
        return known, (f"normalised with {values}, as published; if these weights want others, give mean and std",)
    if isinstance(mean, str) and mean in PRESETS and std in (None, mean):
        pair = PRESETS[mean]
    elif mean is None or std is None:
        missing = "mean" if mean is None else "std"
        raise bad(missing, "nothing", "one number per channel, or a preset", "mean and std go together.")
    else:
        pair = (_numbers("mean", mean, 0), _numbers("std", std, 1))
        if min(pair[1]) <= 0:
            raise bad("std", pair[1], "numbers > 0")
    for argument, values in zip(("mean", "std"), pair or ()):
        if max(map(abs, values)) > 2:
            raise bad(argument, values, "units of the [0, 1] range", "Divide by 255.")
        if len(values) > 1 and channels is not None and len(values) != channels:
            raise bad(argument, f"{len(values)} values", f"1 or {channels}, one for each channel")
    if pair is not None and 1 < len(pair[0]) != len(pair[1]) > 1:
        raise bad("std", f"{len(pair[1])} values", f"1, or as many as mean has: {len(pair[0])}")
    return pair, ()


def _numbers(argument: str, value: str | float | Sequence[float], part: int) -> tuple[float, ...]:
    if isinstance(value, str) and PRESETS.get(value):
        return PRESETS[value][part]  # type: ignore[index]
    try:
        if isinstance(value, str):
            return tuple(float(v) for v in value.replace(",", " ").split())
        return (float(value),) if isinstance(value, (int, float)) else tuple(float(v) for v in value)
    except (TypeError, ValueError):
        allowed = f"one number per channel, e.g. 0.485,0.456,0.406, or one of {', '.join(PRESETS)}"
        raise bad(argument, repr(value), allowed) from None


def _short(values: Sequence[float]) -> str:
    return " ".join(f"{v:g}" for v in values)
