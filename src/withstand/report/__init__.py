"""The report of an audit: one HTML page that works offline, and the tables for terminals and machines."""

from withstand.report.page import render, write
from withstand.report.tables import junit, markdown, model_index, terminal

__all__ = ["junit", "markdown", "model_index", "render", "terminal", "write"]
