"""The public benchmarks of distribution shift: what they hold, where they lie, how their images are shown to a model."""

from withstand.data.shift.disk import Stock, survey
from withstand.data.shift.table import BENCHMARKS, Benchmark, benchmark
from withstand.data.shift.view import View

__all__ = ["BENCHMARKS", "Benchmark", "Stock", "View", "benchmark", "survey"]
