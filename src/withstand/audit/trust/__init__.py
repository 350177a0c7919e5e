"""Trust indicators: does an attack fail because the model is robust, or because the attack is?

An indicator is a component of kind "indicator": a small class that says what it means, how it is measured and what to do,
and whose call turns evidence into a finding. A new one is one class; audits, `withstand list` and the documentation's
table find it by its decorator. It reads rows of the probes (`withstand.audit.trust.probes`) or of other checks, which it
names in `after`: a diagnostic attack such as a surrogate-guided one is a check of its own with an indicator beside it.

References: Carlini et al., "On Evaluating Adversarial Robustness", 2019, arXiv 1902.06705; Pintor et al., "Indicators of
Attack Failure: Debugging and Improving Optimization of Adversarial Examples", 2022, arXiv 2106.09947; Croce, Hein,
"Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", 2020, arXiv 2003.01690.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from withstand.audit.trust.evidence import Evidence, level, worst
from withstand.protocols import Flag, Level
from withstand.registry import entries

__all__ = ["Evidence", "Finding", "Indicator", "assess", "described", "indicators", "level", "worst"]


@dataclass
class Finding:
    """What an indicator saw: how serious it is, one sentence with the numbers in it, and the numbers."""

    level: Level
    seen: str
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Indicator:
    """What all indicators share. The class docstring's first line is the fault that it looks for.

    meaning: what the fault does to a robustness figure. measured: how it is found. threshold: when it warns and fails, and
    why there. advice: what to do about it. after: the checks whose rows it reads beside the probes.
    """

    meaning: ClassVar[str] = ""
    measured: ClassVar[str] = ""
    threshold: ClassVar[str] = ""
    advice: ClassVar[str] = ""
    after: ClassVar[tuple[str, ...]] = ()

    def __call__(self, seen: Evidence) -> Finding | None:
        """The finding, or None where there is nothing to go by."""
        raise TypeError(f"{type(self).__name__} defines no call")


def indicators() -> dict[str, Indicator]:
    """Every registered indicator by name."""
    return {entry.name: entry.load()() for entry in entries("indicator")}


def assess(seen: Evidence) -> list[Flag]:
    """The flags of all indicators that have something to go by, the most serious first."""
    flags = []
    for name, indicator in indicators().items():
        found = indicator(seen)
        if found is not None:
            flags.append(
                Flag(
                    name.replace("_", " "),
                    found.level,
                    f"{found.seen} {indicator.meaning}" if found.level != "pass" else found.seen,
                    indicator.advice if found.level != "pass" else "",
                    found.evidence,
                )
            )
    return sorted(flags, key=lambda f: ("fail", "warn", "pass").index(f.level))


def described() -> str:
    """Our own indicators in Markdown: what each means, how it is measured, when it warns and fails, what to do."""
    parts = []
    own = {e.name: e.load()() for e in entries("indicator") if e.module.startswith("withstand.")}
    for name, indicator in own.items():
        fault = (type(indicator).__doc__ or "").split("\n")[0]
        read = f" It reads the checks {', '.join(f'`{c}`' for c in indicator.after)}." if indicator.after else ""
        parts.append(
            f"### {name.replace('_', ' ')}\n\n**{fault}** {indicator.meaning}\n\n"
            f"- *Measured:* {indicator.measured}{read}\n- *Threshold:* {indicator.threshold}\n"
            f"- *Advice:* {indicator.advice}\n"
        )
    return "\n".join(parts)
