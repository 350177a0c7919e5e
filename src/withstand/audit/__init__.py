"""The audit: checks, presets, the run folder, the scorecard."""

from withstand.audit.check import Check, Table
from withstand.audit.run import audit
from withstand.audit.scorecard import CheckResult, Comparison, Scorecard
from withstand.audit.store import Store

__all__ = ["Check", "CheckResult", "Comparison", "Scorecard", "Store", "Table", "audit"]
