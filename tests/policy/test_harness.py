"""The test bench itself: the network is shut, unwritten memory is NaN, one thread, one seed."""

import socket
from pathlib import Path

import pytest
import torch

# Reserved for documentation (RFC 5737): no machine answers there.
NOWHERE = "192.0.2.1"


@pytest.mark.parametrize("host", [NOWHERE, "example.invalid"])
def test_other_machines_are_out_of_reach(host: str) -> None:
    with pytest.raises(pytest.fail.Exception, match="a test tried to"):
        socket.create_connection((host, 80), timeout=1)


def test_a_socket_does_not_connect_elsewhere() -> None:
    with socket.socket() as client, pytest.raises(pytest.fail.Exception, match="connect"):
        client.connect((NOWHERE, 80))


def test_this_machine_is_in_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_unwritten_memory_is_nan() -> None:
    assert torch.empty(7, 5).isnan().all()


def test_one_thread_and_one_seed() -> None:
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))
    assert torch.get_num_threads() == 1


def test_golden_data_is_there(golden: Path, tiny_release: Path) -> None:
    assert (golden / "defaults.json").is_file()
    assert (tiny_release / "vino.safetensors").is_file()
