"""Attacks on hashing models: queries whose codes lie far from what is relevant, or near what is not."""
