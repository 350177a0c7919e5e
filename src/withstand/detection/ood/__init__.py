"""Detectors of unfamiliar (out-of-distribution) inputs: each is a value; a `Bank` scores several in one pass.

Scores are higher for more suspicious inputs, always.
"""

from withstand.detection.ood.bank import Bank, penultimate
from withstand.detection.ood.knn import KNN
from withstand.detection.ood.logits import MSP, Energy, MaxLogit

__all__ = ["Bank", "Energy", "KNN", "MSP", "MaxLogit", "penultimate"]
