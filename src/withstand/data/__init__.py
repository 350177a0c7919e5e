"""Data: every set by name from a local folder, image folders and arrays; read in batches, refused when bad."""

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "load_data": "withstand.data.load",
    "as_dataset": "withstand.data.load",
    "from_arrays": "withstand.data.arrays",
    "from_series": "withstand.data.series",
    "Images": "withstand.data.images",
    "Series": "withstand.data.series",
}

__all__ = [*_HOMES]

if TYPE_CHECKING:
    from withstand.data.arrays import from_arrays as from_arrays
    from withstand.data.images import Images as Images
    from withstand.data.load import as_dataset as as_dataset
    from withstand.data.load import load_data as load_data
    from withstand.data.series import Series as Series
    from withstand.data.series import from_series as from_series


def __getattr__(name: str) -> Any:
    """Loaded on first use, so that the catalogue can be read without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'withstand.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
