"""Attacks: each is a value, called as `attack(model, x, y) -> x_adv`; `attack.run(...)` also tells success and cost.

Every attack registered anywhere is an attribute of this package under its class name: `ws.attacks.PGD`.
"""

from typing import TYPE_CHECKING, Any

from withstand.registry import entries

if TYPE_CHECKING:
    from withstand.attacks.apgd import APGD, APGDT
    from withstand.attacks.autoattack import AutoAttack
    from withstand.attacks.boundary import Boundary
    from withstand.attacks.carlini_wagner import CarliniWagner
    from withstand.attacks.deepfool import DeepFool
    from withstand.attacks.engine import Attack, AttackResult, Problem
    from withstand.attacks.fab import FAB, FABT
    from withstand.attacks.fgsm import FGSM
    from withstand.attacks.generative.attack import Generated, TargetedGenerated
    from withstand.attacks.gpga import GPGA
    from withstand.attacks.hashing.cga import CgA
    from withstand.attacks.hashing.dhta import DHTA, P2P
    from withstand.attacks.hashing.hag import HAG
    from withstand.attacks.hashing.prosgan import ProSGAN
    from withstand.attacks.hashing.sdha import SDHA
    from withstand.attacks.hashing.tha import THA
    from withstand.attacks.jsma import JSMA
    from withstand.attacks.lbfgs import LBFGS
    from withstand.attacks.neighbours.ask import ASK
    from withstand.attacks.neighbours.mean_guide import MeanGuide, MeanGuideL2
    from withstand.attacks.noise import Noise
    from withstand.attacks.opt import OPT
    from withstand.attacks.pgd import PGD
    from withstand.attacks.retrieval.plain import NESLists, SimBALists
    from withstand.attacks.retrieval.qair import QAIR
    from withstand.attacks.sign_opt import SignOPT
    from withstand.attacks.square import Square
    from withstand.attacks.transfer.logit_std import LogitStd
    from withstand.attacks.transfer.named import (
        BSR,
        DI,
        MI,
        NI,
        PGN,
        RAP,
        SI,
        SINITIDIM,
        SSA,
        TI,
        VMI,
        VNI,
        VNISITIDIM,
        Admix,
    )
    from withstand.attacks.transfer.tpa import TPA
    from withstand.attacks.tsa_stat import TSASTAT
    from withstand.attacks.zoo import ZOO

__all__ = [
    "APGD",
    "APGDT",
    "ASK",
    "Admix",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "BSR",
    "Boundary",
    "CarliniWagner",
    "CgA",
    "DHTA",
    "DI",
    "DeepFool",
    "FAB",
    "FABT",
    "FGSM",
    "GPGA",
    "Generated",
    "HAG",
    "JSMA",
    "LBFGS",
    "LogitStd",
    "MI",
    "MeanGuide",
    "MeanGuideL2",
    "NI",
    "NESLists",
    "Noise",
    "OPT",
    "P2P",
    "PGD",
    "PGN",
    "ProSGAN",
    "Problem",
    "QAIR",
    "RAP",
    "SDHA",
    "SI",
    "SINITIDIM",
    "SSA",
    "SignOPT",
    "SimBALists",
    "Square",
    "THA",
    "TI",
    "TPA",
    "VMI",
    "VNI",
    "VNISITIDIM",
    "TSASTAT",
    "TargetedGenerated",
    "ZOO",
]


def __getattr__(name: str) -> Any:
    if name in {"Attack", "AttackField", "AttackResult", "Problem"}:
        from withstand.attacks import engine

        return getattr(engine, name)
    for kind in ("attack", "view", "shaping"):
        for entry in entries(kind):
            if entry.attribute == name:
                return entry.load()
    raise AttributeError(f"withstand.attacks has no {name!r}; it has {', '.join(sorted(__dir__()))}")


def __dir__() -> list[str]:
    kinds = ("attack", "view", "shaping")
    return ["Attack", "AttackResult", "Problem", *(e.attribute for kind in kinds for e in entries(kind))]
