"""Logs, metrics and health words. At the bottom of the house: it knows nobody."""
