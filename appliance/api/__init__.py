"""The HTTP API over what was recorded."""
