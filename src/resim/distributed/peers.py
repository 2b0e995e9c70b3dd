"""Which process of a run is lost: every process keeps a port open, on which the others find out whether it still runs.

The kernel accepts connections to the port as long as the process exists, whatever it computes, and refuses them from
the moment of its end. No thread is needed, and nothing is sent.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from resim.counts import counted

_SECONDS = 3.0  # for an answer; a network answers in milliseconds
_OF_A_COLLECTIVE = re.compile(
    r"gloo|nccl|processgroup|c10d|tcpstore|connection (closed|reset|refused)|broken pipe|timed out|wait timeout"
    r"|pair closure",  # gloo, where another operation with the same process has timed out
    re.I,
)


@dataclass(frozen=True)
class Address:
    """Where a process of a run can be reached."""

    host: str
    """Its host's name."""
    ip: str
    port: int
    pid: int


class OpenPort:
    """The open port of this process.

    Args:
        is_alone: whether all processes run on this host; then only this host can reach the port.
        meeting: a host that all can reach, over whose network the port is opened.
    """

    def __init__(self, *, is_alone: bool, meeting: str) -> None:
        ip = "127.0.0.1" if is_alone else _own_ip(meeting)
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.bind((ip, 0))
        self._socket.listen(1024)
        # a loader process must not keep the port of a process that has ended
        os.register_at_fork(after_in_child=self.close)
        self.address = Address(socket.gethostname(), ip, self._socket.getsockname()[1], os.getpid())

    def close(self) -> None:
        """Close the port."""
        self._socket.close()


def _own_ip(meeting: str) -> str:
    """This host's address in the network of `meeting`; nothing is sent."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(meeting, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def is_of_a_collective(error: BaseException) -> bool:
    """Whether an error is one of PyTorch's for a collective operation that another process did not take part in."""
    return isinstance(error, RuntimeError) and _OF_A_COLLECTIVE.search(str(error)) is not None


def describe_lost(addresses: Sequence[Address], rank: int) -> str:
    """Which other processes have ended or cannot be reached; empty: all of them answer.

    Args:
        addresses: of all processes, in the order of their ranks.
        rank: of this process.
    """
    ended: list[int] = []
    silent: list[int] = []
    for other, address in enumerate(addresses):
        if other == rank:
            continue
        try:
            socket.create_connection((address.ip, address.port), timeout=_SECONDS).close()
        except OSError as error:
            (ended if error.errno == errno.ECONNREFUSED else silent).append(other)
        if len(silent) >= 4:  # a host that is down: do not wait for each of its processes
            break
    parts = [f"{_names(ended, addresses)} ended before the run did"] if ended else []
    parts += [f"{_names(silent, addresses)} cannot be reached: the host or its link is down"] if silent else []
    return "; ".join(parts)


def _names(ranks: Sequence[int], addresses: Sequence[Address]) -> str:
    """rank 3 (process 4242 on host b), or 5 processes (ranks 3, 4, 5, ... on a, b)."""
    first = addresses[ranks[0]]
    if len(ranks) == 1:
        return f"rank {ranks[0]} (process {first.pid} on {first.host})"
    hosts = ", ".join(sorted({addresses[rank].host for rank in ranks}))
    listed = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"{counted(len(ranks), 'process', 'processes')} (ranks {listed} on {hosts})"
