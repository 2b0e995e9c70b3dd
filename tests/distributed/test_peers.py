"""Which process is lost: one that has ended refuses a connection, one that computes accepts it."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Iterator

import pytest

from resim.distributed.peers import Address, OpenPort, describe_lost, is_of_a_collective


@pytest.fixture
def ports() -> Iterator[list[OpenPort]]:
    opened = [OpenPort(is_alone=True, meeting="127.0.0.1") for _ in range(3)]
    yield opened
    for port in opened:
        port.close()


def test_processes_that_run_are_not_lost(ports: list[OpenPort]) -> None:
    assert describe_lost([port.address for port in ports], 0) == ""


def test_a_process_that_has_ended_is_named(ports: list[OpenPort]) -> None:
    ports[2].close()
    message = describe_lost([port.address for port in ports], 0)
    assert message == f"rank 2 (process {os.getpid()} on {socket.gethostname()}) ended before the run did"


def test_several_are_counted(ports: list[OpenPort]) -> None:
    ports[0].close()
    ports[2].close()
    message = describe_lost([port.address for port in ports], 1)
    assert message == f"2 processes (ranks 0, 2 on {socket.gethostname()}) ended before the run did"


def test_a_host_that_does_not_answer_is_named(ports: list[OpenPort], monkeypatch: pytest.MonkeyPatch) -> None:
    far = dataclasses.replace(ports[1].address, host="node7", pid=12)

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", connect)
    message = describe_lost([ports[0].address, far], 0)
    assert message == "rank 1 (process 12 on node7) cannot be reached: the host or its link is down"


def test_a_loader_process_does_not_keep_the_port_of_its_parent(ports: list[OpenPort]) -> None:
    reading, writing = os.pipe()
    started, starting = os.pipe()
    pid = os.fork()
    if not pid:  # a child that lives on
        os.close(writing)
        os.write(starting, b"1")
        os.read(reading, 1)
        os._exit(0)
    try:
        os.read(started, 1)
        ports[1].close()  # as if the parent had ended
        assert "rank 1 " in describe_lost([port.address for port in ports], 0)
    finally:
        for descriptor in (writing, reading, started, starting):
            os.close(descriptor)
        os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (RuntimeError("NCCL communicator was aborted on rank 0"), True),
        (RuntimeError("Timed out waiting 6000ms for recv operation to complete"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("gloo"), False),
    ],
)
def test_errors_of_collectives_are_recognised(error: Exception, expected: bool) -> None:
    assert is_of_a_collective(error) is expected


def test_on_several_hosts_the_port_is_opened_in_their_network() -> None:
    port = OpenPort(is_alone=False, meeting="127.0.0.1")
    assert isinstance(port.address, Address)
    assert port.address.ip == "127.0.0.1"
    port.close()
