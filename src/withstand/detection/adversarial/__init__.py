"""Detectors of adversarial examples: each is a value; a `Bank` scores several in one pass.

Scores are higher for more suspicious inputs, always. None of them is a defence by itself: all were broken by attacks that
know them (Carlini, Wagner, 2017, arXiv 1705.07263; Tramer et al., 2020, arXiv 2002.08347), and the check `detection`
measures that beside the AUROC.
"""

from withstand.detection.adversarial.dropout_variance import DropoutVariance
from withstand.detection.adversarial.evading import Evading
from withstand.detection.adversarial.kernel_density import KernelDensity
from withstand.detection.adversarial.lid import LID
from withstand.detection.adversarial.mahalanobis import Mahalanobis
from withstand.detection.adversarial.odds import Odds

__all__ = ["DropoutVariance", "Evading", "KernelDensity", "LID", "Mahalanobis", "Odds"]
