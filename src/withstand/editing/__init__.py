"""Edits of one attribute of the object in an image: its size, place, direction, or what lies behind it."""
