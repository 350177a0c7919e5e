"""Representations: their measures, and the recipes that learn them."""
