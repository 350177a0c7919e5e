"""What the indicators read: the rows of the trust probes and of the checks that ran before, as sets of examples."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from withstand.audit.check import Table
from withstand.audit.measure import threat_text
from withstand.metrics import wilson
from withstand.protocols import Level

REMARK, SERIOUS = 0.01, 0.05
"""Shares of examples. One point of robust accuracy is worth a remark. Five points are more than any of the sound defences
of AutoAttack's table loses between its own PGD figure and AutoAttack (Croce and Hein, arXiv 2003.01690: 3 to 4 points), so
that such a gap means a failing attack and not a weak one."""

LEAST, ENOUGH = 3, 10
"""One or two examples may be the luck of a search, so a flag needs three; on fewer than ten nothing is said at all."""

SHARES = "Warns and fails when, at 95 % confidence, more than 1 % and 5 % of all examples are affected; three at least."
"""The same rule in words."""


class Evidence:
    """Rows under their conditions, keyed by example.

    rows: of the probes. others: of the checks that ran, by name. threat: that of the probes, in words ("Linf 8/255").
    """

    def __init__(self, rows: Table, others: Mapping[str, Table], threat: str = "") -> None:
        self.rows, self.others, self.threat = rows, others, threat

    @cached_property
    def right(self) -> set[int]:
        """The examples that the model gets right: all others are no evidence of anything."""
        chosen = self.rows.where(probe="clean")
        return set(chosen.id[chosen.outcome].tolist())

    def values(self, **condition: object) -> dict[int, float]:
        """The value of each example that the model gets right."""
        chosen = self.rows.where(**condition)
        return {i: v for i, v in zip(chosen.id.tolist(), chosen.value.tolist()) if i in self.right}

    def numbers(self, **condition: object) -> np.ndarray:
        """All values under a condition, of whatever unit."""
        return self.rows.where(**condition).value

    def tested(self, **condition: object) -> set[int]:
        """The examples, among those that the model gets right, for which there is an outcome."""
        return set(self.rows.where(**condition).id.tolist()) & self.right

    def broken(self, **condition: object) -> set[int]:
        """Those that did not withstand."""
        chosen = self.rows.where(**condition)
        return set(chosen.id[~chosen.outcome].tolist()) & self.right if len(chosen) else set()

    @cached_property
    def white_box(self) -> tuple[set[int], set[int]]:
        """(tested, broken) by the white-box probes at the threat itself."""
        found = [{"probe": "attack", "attack": name, "times": 1.0} for name in ("pgd", "pgd_margin")]
        return self.tested(**found[0]), self.broken(**found[0]) | self.broken(**found[1])

    def check(self, name: str) -> dict[str, tuple[set[int], set[int]]]:
        """The rows of the checks of one kind by threat: (tested, broken), the worst case over everything else in the
        condition."""
        found: dict[str, tuple[set[int], set[int]]] = {}
        tables = [table for key, table in self.others.items() if key == name or key.startswith(f"{name}-")]
        for table, condition in ((t, c) for t in tables for c in t.conditions() if "threat" in c):
            rows = table.where(**condition)
            if not rows.table["outcome"].null_count:
                key = threat_text(condition["threat"], condition.get("eps"))
                tested, broken = found.setdefault(key, (set(), set()))
                tested |= set(rows.id.tolist())
                broken |= set(rows.id[~rows.outcome].tolist())
        return found


def level(affected: int, n: int) -> Level:
    """How serious it is that `affected` of n examples show a fault: whether more than a share of all examples (`REMARK`:
    warn, `SERIOUS`: fail) must be affected, by the lower end of Wilson's 95 % interval."""
    if affected < LEAST:
        return "pass"
    low = wilson(affected, n)[0]
    return "fail" if low > SERIOUS else "warn" if low > REMARK else "pass"


def worst(*levels: Level) -> Level:
    """The most serious of several levels."""
    order: tuple[Level, ...] = ("pass", "warn", "fail")
    return max(levels, key=order.index)
