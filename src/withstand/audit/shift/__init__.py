"""`shift`: the public benchmarks of distribution shift."""

from withstand.audit.shift.run import shift

__all__ = ["shift"]
