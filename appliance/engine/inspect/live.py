"""Show what was just understood to the API process, if it wants to know. Never waits, never queues.

The API listens on a Unix stream socket and writes one byte whenever it changes its mind: ``1`` while somebody watches
the live feed, ``0`` otherwise. Frames are a u32 length (little-endian) and a JSON array of objects with the contract's
field names. What does not fit into the socket's buffer is dropped and counted; the API passes the count on.
"""

import asyncio
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from appliance.model.connection import Connection, ConnectionRecord
from appliance.model.exchange import Exchange, completeness
from appliance.record.redact import Redactor

BUFFER = 1 << 20  # bytes that may wait for a slow API
RETRY = 1.0  # seconds between attempts to connect

_LENGTH = struct.Struct("<I")
