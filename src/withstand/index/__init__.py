"""Nearest neighbours among vectors and codes, for all that votes, retrieves or measures by them."""

from withstand.index.codes import CodeIndex as CodeIndex
from withstand.index.codes import pack as pack
from withstand.index.codes import unpack as unpack
from withstand.index.exact import Index as Index

__all__ = ["CodeIndex", "Index", "pack", "unpack"]
