"""What every test starts from: no network, one thread, a fixed seed, NaN in unwritten memory, the golden data.

It knows where test data lies and nothing of the code under test.
"""

import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden" / "vino"
COMPILE_SECONDS = 900
"""The first test marked `compiles` waits for the compiler, on a busy machine much longer than on an idle one."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Skip tests marked gpu where there is no CUDA device, with the reason in sight; group tests that belong together.

    One worker of pytest-xdist runs all tests that compile, and one all of a file, so that what they share is made once;
    slow tests, which share little, go to whichever worker is free. Here and not in the hook in which plugins change the
    items, since there pytest-xdist reads its groups.
    """
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))
    if item.get_closest_marker("compiles"):
        item.add_marker(pytest.mark.timeout(COMPILE_SECONDS))
        item.add_marker(pytest.mark.xdist_group("compiles"))
    elif not item.get_closest_marker("slow"):
        item.add_marker(pytest.mark.xdist_group(item.path.stem))


def is_local(host: object) -> bool:
    """Whether a host given to a socket is this machine; None and the empty string mean that to the socket module."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(name)).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Fail the test that reaches for another machine; sockets to this one stay open.

    `pytest.fail` does not derive from Exception, so a library that retries or falls back cannot hide it.
    Child processes are told through the environment, which the model libraries obey.
    """
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_local(address[0]):
            pytest.fail(f"a test tried to connect to {address}")
        connect(self, address)

    def guarded_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_local(host):
            pytest.fail(f"a test tried to look up {host!r}")
        return lookup(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket, "getaddrinfo", guarded_lookup)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN, so that a value nobody wrote cannot pass for a right one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield
        torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def fixed_start() -> None:
    """Seed torch and compute on one thread: threads of parallel tests only take each other's cores."""
    torch.manual_seed(0)
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The directory of golden cases; its README says where they come from."""
    assert GOLDEN.is_dir(), f"golden data is missing: {GOLDEN}"
    return GOLDEN


@pytest.fixture(scope="session")
def tiny_release(golden: Path) -> Path:
    """A complete release in small: checkpoint, HunyuanVideo and Qwen3-VL directories, random weights."""
    return golden / "e2e_ckpt"
