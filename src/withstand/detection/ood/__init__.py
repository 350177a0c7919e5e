"""Detectors of unfamiliar (out-of-distribution) inputs: each is a value; a `Bank` scores several in one pass.

Scores are higher for more suspicious inputs, always.
"""

from withstand.detection.ood.bank import Bank, penultimate
from withstand.detection.ood.bats import BATS
from withstand.detection.ood.classes import MDS, RMDS, SHE
from withstand.detection.ood.knn import KNN
from withstand.detection.ood.linear import ASH, DICE, GradNorm, ReAct, ViM
from withstand.detection.ood.logits import GEN, MSP, Energy, KLMatching, MaxLogit, TemperatureScaling
from withstand.detection.ood.odin import ODIN

__all__ = [
    "ASH",
    "BATS",
    "DICE",
    "GEN",
    "KNN",
    "MDS",
    "MSP",
    "ODIN",
    "RMDS",
    "SHE",
    "Bank",
    "Energy",
    "GradNorm",
    "KLMatching",
    "MaxLogit",
    "ReAct",
    "TemperatureScaling",
    "ViM",
    "penultimate",
]
