"""One netlink socket: send messages, collect the kernel's verdict on each.

pyroute2 encodes and decodes the messages; the conversation is our own, because a transaction needs three things that
its sockets do not give: which message of a batch was refused, the kernel's own words for it (extended ACK), and an end
to the waiting when the kernel answers only to the batch's first message (docs/adr: netlink by our own sockets).

The kernel handles a request inside ``send()``, so that every call here is brief; it is synchronous, usable from any
thread or event loop, and stays in the network namespace in which the socket was made.
"""

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST

from appliance.netfilter.errors import KernelSilent

NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4
NETLINK_NETFILTER = 12

# include/uapi/linux/netlink.h; the socket module has none of these.
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLMSG_OVERRUN = 4
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1

HEADER = struct.Struct("=IHHII")
_ERRNO = struct.Struct("=i")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE = 1 << 18
_BUFFER = 4 << 20


class Refused(OSError):
    """The kernel answered a message with an error. ``index`` is the message's place in what was sent."""

    def __init__(self, code: int, explanation: str, index: int) -> None:
        super().__init__(code, explanation or os.strerror(code))
        self.explanation = explanation
        self.index = index


class Answer(NamedTuple):
    """One message from the kernel: its type, and all its bytes including the header."""

    type: int
    data: bytes


class NetlinkSocket:
    """A conversation with one kernel subsystem. Close-on-exec; do not let a forked child keep it."""

    def __init__(self, protocol: int, timeout: float = 5.0, groups: int = 0) -> None:
        """Open the socket in the current network namespace; ``timeout`` in seconds bounds every wait.

        ``groups`` is the bit mask of event groups to join; a socket that joins any is for ``events`` only.
        """
        # Python's sockets are close-on-exec (PEP 446): a spawned child must not keep an owned table alive.
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.settimeout(0 if groups else timeout)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        if protocol == NETLINK_ROUTE:
            # The kernel then applies what a dump request asks for, instead of sending a million routes to pick from.
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        # A transaction is one datagram. Without CAP_NET_ADMIN the limits stay, and EPERM comes with the transaction.
        for option in (_SO_SNDBUFFORCE, _SO_RCVBUFFORCE):
            with contextlib.suppress(PermissionError):
                self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        self._socket.bind((0, groups))
        self._sequence = 0
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        """The kernel's name for this socket; an owned table carries it."""
        return int(self._socket.getsockname()[0])

    def fileno(self) -> int:
        """The descriptor, for those who must close it in a child."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket; a table it owns goes with it."""
        self._socket.close()

    def events(self) -> list[Answer]:
        """What has arrived by now, without waiting. An overrun (ENOBUFS) is an empty event: look for yourself."""
        arrived: list[Answer] = []
        while True:
            try:
                datagram = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                return arrived
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                arrived.append(Answer(_NLMSG_OVERRUN, b""))
                continue
            arrived += [Answer(kind, data) for kind, _, _, data in _messages(datagram)]

    def ask(self, message: Any) -> list[Answer]:
        """Send one request and return what came before its ACK. Raises ``Refused``."""
        message["header"]["flags"] |= NLM_F_REQUEST | NLM_F_ACK
        return self.exchange([message])

    def dump(self, message: Any) -> list[Answer]:
        """Ask for every object of a kind."""
        message["header"]["flags"] = NLM_F_REQUEST | NLM_F_DUMP
        return self.exchange([message])

    def exchange(self, messages: Sequence[Any]) -> list[Answer]:
        """Send messages as one datagram and wait for the verdict on each that asks for one (ACK or DUMP).

        Raises ``Refused`` for the first refusal, ``KernelSilent`` when a verdict stays out.
        """
        with self._lock:
            return self._exchange(messages)

    def _exchange(self, messages: Sequence[Any]) -> list[Answer]:
        first = self._sequence + 1
        wire = bytearray()
        awaited = set()
        for sequence, message in enumerate(messages, first):
            message["header"]["sequence_number"] = sequence
            message.reset()
            message.encode()
            wire += message.data
            if message["header"]["flags"] & (NLM_F_ACK | NLM_F_DUMP):
                awaited.add(sequence)
        self._sequence += len(messages)
        self._socket.send(wire)
        answers: list[Answer] = []
        while awaited:
            for kind, flags, sequence, data in self._receive():
                if not first <= sequence <= self._sequence:
                    continue  # what a call that timed out left behind
                if kind not in (_NLMSG_ERROR, _NLMSG_DONE):
                    answers.append(Answer(kind, data))
                    continue
                code, explanation = _verdict(kind, flags, data)
                if code:
                    # Verdicts come in order, so this is the first. It may be the only one: without CAP_NET_ADMIN
                    # a batch is answered at its BEGIN, which asked for nothing.
                    raise Refused(code, explanation, sequence - first)
                awaited.discard(sequence)
        return answers

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        try:
            datagram = self._socket.recv(_RECEIVE)
        except TimeoutError as error:
            raise KernelSilent(
                f"the kernel did not answer within {self._socket.gettimeout()} s (netlink port {self.port})"
            ) from error
        yield from _messages(datagram)


def attribute(kind: int, payload: bytes) -> bytes:
    """One netlink attribute, padded (for the few messages where building objects would be too slow)."""
    return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload + b"\0" * (-len(payload) % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in a byte string as (type without flags, payload)."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += _align(length)


def _messages(datagram: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The messages in a datagram as (type, flags, sequence, all bytes)."""
    offset = 0
    while offset + HEADER.size <= len(datagram):
        length, kind, flags, sequence, _ = HEADER.unpack_from(datagram, offset)
        yield kind, flags, sequence, datagram[offset : offset + length]
        offset += _align(length)


def _verdict(kind: int, flags: int, data: bytes) -> tuple[int, str]:
    """The error number (0: fine) and the kernel's words, of an ACK or an end of dump."""
    if len(data) < HEADER.size + _ERRNO.size:
        return 0, ""
    (code,) = _ERRNO.unpack_from(data, HEADER.size)
    if not flags & _NLM_F_ACK_TLVS:
        return -code, ""
    # An ACK repeats the header of what it answers, an end of dump does not.
    told = data[HEADER.size + _ERRNO.size + (HEADER.size if kind == _NLMSG_ERROR else 0) :]
    for attribute_type, payload in attributes(told):
        if attribute_type == _NLMSGERR_ATTR_MSG:
            return -code, payload.rstrip(b"\0").decode(errors="replace")
    return -code, ""


def _align(length: int) -> int:
    return (length + 3) & ~3
