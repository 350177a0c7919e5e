"""Attacks on classifiers that vote by nearest neighbours; all need a `withstand.knn_classifier`."""
