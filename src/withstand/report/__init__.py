"""The report of an audit: one HTML page that works offline, and the tables for terminals and machines."""

from withstand.report.page import render, write

__all__ = ["render", "write"]
