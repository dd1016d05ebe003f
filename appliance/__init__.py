"""Weir: intercept, relay, understand, store, query."""

__version__ = "0.1.0"
