"""Ranks talk by datagrams, so that nothing waits for a process that is stopped: not a store that rank 0 keeps, not a
connection. What is said may get lost, and is said again."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch.distributed as dist

DATAGRAM = 65536
"""Bytes that one may have at most."""


@dataclass(frozen=True)
class Member:
    """A rank's process."""

    host: str
    pid: int
    born: float
    """When the process began: a pid may be given again."""
    address: tuple[str, int]
    token: str
    """Rank 0's is in all that its group says: nobody else is listened to."""

    def process(self) -> psutil.Process | None:
        """The process, while it lives and on its own machine."""
        try:
            process = psutil.Process(self.pid)
            return process if process.create_time() == self.born else None
        except psutil.NoSuchProcess:
            return None


class Talk:
    """Makes the ranks of torch.distributed known to each other; each of them must make one."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self._socket = _open_socket()
        process = psutil.Process()
        address = self._socket.getsockname()[:2]
        mine = Member(socket.gethostname(), process.pid, process.create_time(), address, secrets.token_hex(8))
        self.members = [mine] * dist.get_world_size()
        dist.all_gather_object(self.members, mine)
        self.names = [f"rank {rank} ({member.host}, pid {member.pid})" for rank, member in enumerate(self.members)]

    def tell(self, ranks: Iterable[int], *message: Any) -> None:
        """Send ``message``, of what JSON knows."""
        data = json.dumps([self.members[0].token, *message]).encode()
        for rank in ranks:
            try:
                self._socket.sendto(data, self.members[rank].address)
            except OSError:  # its machine is gone, or the network for now: its silence will tell
                continue

    def hear(self, until: float) -> Sequence[Any]:
        """The next message; () when there is none until the monotonic clock says ``until``."""
        while (left := until - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                message = json.loads(self._socket.recv(DATAGRAM))
            except (OSError, ValueError):
                continue
            if message[:1] == [self.members[0].token]:
                return message[1:]
        return ()

    def close(self) -> None:
        """Hear nothing any more."""
        self._socket.close()

    def beside(self) -> list[int]:
        """Ranks on this machine, this one among them."""
        return [r for r, member in enumerate(self.members) if member.host == self.members[self.rank].host]


def _open_socket() -> socket.socket:
    """At this machine's address on the network of rank 0's."""
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    family, kind, _, _, target = socket.getaddrinfo(master, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)  # sends nothing: it chooses the way
        own = probe.getsockname()[0]
    made = socket.socket(family, kind)
    made.bind((own, 0))
    return made
