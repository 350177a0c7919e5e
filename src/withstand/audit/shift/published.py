"""What others got on the shift benchmarks, to put beside one's own numbers.

Source: the model zoo of EasyRobust (alibaba/easyrobust, README), trained and measured there; plain ResNet-50: the
output of its example there. Top-1 in per cent, imagenet-c as mCE.
"""

from collections.abc import Collection
from typing import Any

SOURCE = "EasyRobust, README"
_COLUMNS = (
    "imagenet", "imagenet-v2", "imagenet-c", "imagenet-r", "imagenet-a", "imagenet-sketch", "stylized", "objectnet",
)  # fmt: skip
_ROWS: dict[str, tuple[float | None, ...]] = {
    "ResNet-50": (76.1, 63.2, 76.7, 36.2, 0.0, 24.1, 7.4, None),
    "ResNet-50, AugMix": (77.81, 65.60, 64.14, 43.34, 4.04, 29.81, 12.33, 17.21),
    "ResNet-50, PRIME": (76.64, 64.37, 57.62, 41.95, 2.07, 29.63, 13.56, 16.28),
    "ResNet-50, DeepAugment": (76.58, 64.77, 60.27, 42.80, 3.62, 29.65, 14.88, 16.88),
    "ResNet-50, SIN+IN": (75.46, 63.50, 67.73, 42.34, 2.47, 31.39, 59.37, 16.17),
    "ResNet-50, AdvProp": (76.64, 64.35, 77.64, 37.43, 2.83, 24.71, 7.33, 16.82),
    "ViT-B/16, DAT": (81.38, 69.99, 45.59, 49.64, 24.61, 36.46, 24.84, 20.12),
}


def published(benchmarks: Collection[str]) -> list[dict[str, Any]]:
    """One entry for each model that has a figure on one of these benchmarks; values in the units of the results."""
    found = []
    for model, figures in _ROWS.items():
        values = {
            name: value if name == "imagenet-c" else round(value / 100, 4)
            for name, value in zip(_COLUMNS, figures)
            if name in benchmarks and value is not None
        }
        if values:
            found.append({"model": model, "source": SOURCE, "values": values})
    return found
