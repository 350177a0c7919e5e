"""Generators: networks trained once, that then make adversarial images in one forward pass each."""

from withstand.attacks.generative.aigan import AIGAN as AIGAN
from withstand.attacks.generative.attack import Generated as Generated
from withstand.attacks.generative.attack import TargetedGenerated as TargetedGenerated
from withstand.attacks.generative.bia import BIA as BIA
from withstand.attacks.generative.bia import CDA as CDA
from withstand.attacks.generative.generator import Generator as Generator

__all__ = ["AIGAN", "BIA", "CDA", "Generated", "Generator", "TargetedGenerated"]
