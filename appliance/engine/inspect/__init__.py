"""Reads the copy, understands it, hands rows to the recorder."""
