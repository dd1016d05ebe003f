"""Protocols, sans-io: bytes in, events out. No sockets, clocks, logs or randomness in here."""
