"""Attacks on nearest-neighbour classifiers."""
