"""Attacks on engines that return ranked lists."""
