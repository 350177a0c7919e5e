"""The 15 common and 4 extra image corruptions at 5 severities, on batches of tensors, and their scores."""

from withstand.corruptions.apply import corrupt
from withstand.corruptions.make import make_corrupted
from withstand.corruptions.scores import mce, mean_error, relative_mce
from withstand.corruptions.tables import SEVERITIES, corruption_names, reported_name

__all__ = [
    "SEVERITIES",
    "corrupt",
    "corruption_names",
    "make_corrupted",
    "mce",
    "mean_error",
    "relative_mce",
    "reported_name",
]
