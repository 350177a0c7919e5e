"""Nearest neighbours among vectors and codes, for all that votes, retrieves or measures by them."""

from withstand.index.approximate import HNSW as HNSW
from withstand.index.codes import CodeIndex as CodeIndex
from withstand.index.codes import pack as pack
from withstand.index.codes import unpack as unpack
from withstand.index.exact import Index as Index
from withstand.index.stored import Collection as Collection
from withstand.index.stored import build as build
from withstand.index.stored import load as load

__all__ = ["HNSW", "CodeIndex", "Collection", "Index", "build", "load", "pack", "unpack"]
