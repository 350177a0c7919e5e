"""Representations: metric learning, deep hashing, self- and semi-supervised learning, and how they are measured."""
