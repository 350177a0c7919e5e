"""Nearest neighbours among vectors, for all that votes, retrieves or measures by them."""

from withstand.index.exact import Index as Index

__all__ = ["Index"]
