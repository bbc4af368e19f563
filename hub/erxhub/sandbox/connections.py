"""The connections of one namespace on the data port, which all share: which there are, and how they are cut.

Owns the only way to a single connection. gRPC can end a server and no connection of it, so the socket is shut down
below gRPC, which sees a peer that is gone. Must never: touch a socket of another port or peer.
"""

from __future__ import annotations

import os
import socket
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import unquote

PEERS_MAX: Final = 4096
"""Connections that are remembered, far more than a test has open at once; the quietest is forgotten first."""

_DESCRIPTORS: Final = Path("/dev/fd")
_MAPPED: Final = "::ffff:"


class Connections:
    """The other ends of a namespace's connections, in gRPC's words ("ipv4:127.0.0.1:54321")."""

    def __init__(self) -> None:
        self._peers: OrderedDict[str, None] = OrderedDict()

    def note(self, peer: str) -> None:
        """A call came from there."""
        self._peers[peer] = None
        self._peers.move_to_end(peer)
        if len(self._peers) > PEERS_MAX:
            self._peers.popitem(last=False)

    def cut(self, port: int) -> None:
        """Cut every connection between one of them and this port of ours, and forget them; idle ones too."""
        peers, self._peers = {unquote(peer) for peer in self._peers}, OrderedDict()
        _shut_down(port, peers)


def _shut_down(port: int, peers: Collection[str]) -> None:
    for descriptor in [int(path.name) for path in _DESCRIPTORS.iterdir()]:
        # What is no socket any more, or not connected, is no connection to cut.
        with suppress(OSError), _borrowed(descriptor) as found:
            if found.getsockname()[1] == port and _name(found.getpeername()) in peers:
                found.shutdown(socket.SHUT_RDWR)


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """The TCP socket behind a descriptor of this process; it stays open. Raises OSError where there is none."""
    own = os.dup(descriptor)
    try:
        found = socket.socket(fileno=own)
    except OSError:
        os.close(own)
        raise
    with found:
        if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
            raise OSError("no TCP socket")
        yield found


def _name(address: tuple[str | int, ...]) -> str:
    """An address as gRPC tells it."""
    host, port = str(address[0]), address[1]
    if ":" in host and not host.startswith(_MAPPED):
        return f"ipv6:[{host}]:{port}"
    return f"ipv4:{host.removeprefix(_MAPPED)}:{port}"
