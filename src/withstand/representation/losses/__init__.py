"""Losses on embeddings."""

from withstand.representation.losses.cbml import CBMLLoss as CBMLLoss
from withstand.representation.losses.pairs import MetricLoss as MetricLoss
from withstand.representation.losses.pairs import MetricLossField as MetricLossField
from withstand.representation.losses.pml import PML as PML
from withstand.representation.losses.s2sd import S2SD as S2SD
