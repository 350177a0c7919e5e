"""The loop that all attacks share: blocks, the active set, the best point of each example, counted passes."""

from withstand.attacks.engine.problem import Point, Problem
from withstand.attacks.engine.run import Attack, AttackField, AttackResult

__all__ = ["Attack", "AttackField", "AttackResult", "Point", "Problem"]
