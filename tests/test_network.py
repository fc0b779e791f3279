"""The bad network of harness/network.py: what it does to packets, and that it leaves nothing behind."""

import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from harness.network import CLIENT, PERFECT, SERVER, Conditions, Network, NetworkUnavailable, bad_network, in_namespace

BODY = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    try:
        with bad_network(seed=0) as network:
            yield network
    except NetworkUnavailable as error:
        pytest.skip(str(error))


def transfer(network: Network, conditions: Conditions) -> tuple[bytes, float]:
    """Send BODY from the server to the client. Returns what arrived, and the seconds that the connection took."""
    network.set(PERFECT)
    with in_namespace(network.server):
        listener = socket.create_server((SERVER, 0))
    network.set(conditions)
    with in_namespace(network.client):
        client = socket.socket()
    with listener, client:
        client.settimeout(30)
        started_at = time.monotonic()
        client.connect(listener.getsockname())
        seconds = time.monotonic() - started_at
        connection, (address, _) = listener.accept()
        assert address == CLIENT
        with connection:
            sender = threading.Thread(target=lambda: (connection.sendall(BODY), connection.shutdown(socket.SHUT_WR)))
            sender.start()
            received = b"".join(iter(lambda: client.recv(65536), b""))
            sender.join()
    return received, seconds


def test_a_perfect_network_loses_nothing(network: Network) -> None:
    before = network.packets
    assert transfer(network, PERFECT)[0] == BODY
    assert (network.packets - before).lost == 0


def test_packets_take_the_delay_in_both_directions(network: Network) -> None:
    assert 0.1 <= transfer(network, Conditions(delay=0.05))[1] < 1


def test_bytes_arrive_in_order_though_packets_are_lost_reordered_and_doubled(network: Network) -> None:
    before = network.packets
    assert transfer(network, Conditions(delay=0.001, jitter=0.01, loss=0.05, duplicates=0.1))[0] == BODY
    packets = network.packets - before
    assert packets.lost
    assert packets.reordered


def test_small_packets_and_windows_take_more_packets(network: Network) -> None:
    before = network.packets
    assert transfer(network, Conditions(mtu=576, window=1072))[0] == BODY
    assert (network.packets - before).forwarded > len(BODY) / 576


def test_nothing_passes_a_cut_network(network: Network) -> None:
    network.set(Conditions(loss=1.0))
    with in_namespace(network.client), socket.socket() as client:
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.connect((SERVER, 9))
    assert network.packets.lost


def test_nothing_is_left_behind() -> None:
    try:
        with bad_network(seed=1) as network:
            names = network.server, network.client
    except NetworkUnavailable as error:
        pytest.skip(str(error))
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not any(name in listed for name in names)
