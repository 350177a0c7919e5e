"""Hardening: recipes that make a classifier withstand more, one file each, and the verb that runs them."""
