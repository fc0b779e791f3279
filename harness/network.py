"""A bad network between two network namespaces: packets are lost, delayed, reordered and duplicated.

Two TUN devices are joined by a thread of this process that forwards their IP packets, so that the kernel's TCP meets
real loss and delay. `tc netem` would do the same in the kernel, but not every kernel has it. This takes Linux,
/dev/net/tun, the command `ip` and the right to create network namespaces.
"""

import ctypes
import fcntl
import heapq
import os
import random
import selectors
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count

from harness.background import background

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
SERVER, CLIENT = "198.18.0.1", "198.18.0.2"
"""Addresses of a range that is reserved for tests of networks (RFC 2544)."""
MTU = 1500
LARGEST_PACKET = 65536
NUMBERS = count()
"""Numbers of this process's networks, for their names."""


class NetworkUnavailable(Exception):
    """This system does not allow such a network. The message says why."""


@dataclass(frozen=True)
class Conditions:
    """What happens to each packet, in either direction."""

    delay: float = 0.0
    """Seconds."""
    jitter: float = 0.0
    """Up to so many seconds more, at random. Packets that follow each other faster are reordered."""
    loss: float = 0.0
    """Share of packets."""
    duplicates: float = 0.0
    """Share of packets that arrive twice."""
    mtu: int = MTU
    """Bytes of the largest packet."""
    window: int = 0
    """Bytes of the largest TCP window that the client offers; 0 for the kernel's own choice."""


PERFECT = Conditions()


@dataclass(frozen=True)
class Packets:
    """Numbers of packets."""

    forwarded: int = 0
    lost: int = 0
    reordered: int = 0
    """Packets that arrived after one that had been sent later."""

    def __sub__(self, other: "Packets") -> "Packets":
        return Packets(self.forwarded - other.forwarded, self.lost - other.lost, self.reordered - other.reordered)

    def __str__(self) -> str:
        return f"{self.forwarded:,} packets, {self.lost:,} lost, {self.reordered:,} reordered"


@dataclass
class Network:
    """A network with a namespace for the service and one for the clients."""

    server: str
    client: str
    conditions: Conditions = PERFECT
    packets: Packets = Packets()
    """The packets so far."""
    devices: dict[str, str] = field(default_factory=dict)
    """The name of each namespace's device."""

    def set(self, conditions: Conditions) -> None:
        """Change the conditions, for new connections also the size of packets and windows."""
        self.conditions = conditions
        for namespace, device in self.devices.items():
            _ip("-n", namespace, "link", "set", device, "mtu", str(conditions.mtu))
        route = ["-n", self.client, "route", "replace", f"{SERVER}/32", "dev", self.devices[self.client]]
        _ip(*route, *(["window", str(conditions.window)] if conditions.window else []))


@contextmanager
def bad_network(seed: int) -> Iterator[Network]:
    """Create a network without faults until the block ends. Raises NetworkUnavailable."""
    number = f"{os.getpid()}-{next(NUMBERS)}"
    network = Network(f"drawbridge-server-{number}", f"drawbridge-client-{number}")
    with ExitStack() as stack:
        ends = list[int]()
        for namespace, own, other in ((network.server, SERVER, CLIENT), (network.client, CLIENT, SERVER)):
            device = f"{'sc'[len(ends)]}{number}"
            ends.append(_open_tun(device))
            stack.callback(os.close, ends[-1])
            _ip("netns", "add", namespace)
            stack.callback(_ip, "netns", "delete", namespace)
            _ip("link", "set", device, "netns", namespace)
            for command in (["addr", "add", own, "peer", other, "dev", device], ["link", "set", "lo", "up"],
                            ["link", "set", device, "up"]):  # fmt: skip
                _ip("-n", namespace, *command)
            network.devices[namespace] = device
        network.set(PERFECT)
        stack.enter_context(_forwarding(network, ends[0], ends[1], seed))
        yield network


@contextmanager
def in_namespace(name: str) -> Iterator[None]:
    """Let this thread, and the threads and processes that it starts, use the network of a namespace."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    other = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        _setns(other)
        yield
    finally:
        _setns(before)
        os.close(before)
        os.close(other)


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _open_tun(name: str) -> int:
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    except OSError as error:
        raise NetworkUnavailable(f"network namespaces with TUN devices are not allowed here: {error}") from None
    return descriptor


def _ip(*arguments: str) -> None:
    command = shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin")
    if command is None:
        raise NetworkUnavailable("the command `ip` is not installed")
    done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NetworkUnavailable(f"network namespaces with TUN devices are not allowed here: {done.stderr.strip()}")


@contextmanager
def _forwarding(network: Network, first: int, second: int, seed: int) -> Iterator[None]:
    """Forward packets between two TUN devices in a thread until the block ends."""
    source = random.Random(seed)
    waiting: list[tuple[float, int, int, bytes]] = []
    """When a packet arrives, its number, where it goes, and the packet: a heap."""
    numbers, newest = count(), {first: -1, second: -1}

    def receive(end: int, other: int) -> None:
        with suppress(BlockingIOError):
            while True:
                packet = os.read(end, LARGEST_PACKET)
                conditions, number = network.conditions, next(numbers)
                if source.random() < conditions.loss:
                    network.packets = replace(network.packets, lost=network.packets.lost + 1)
                    continue
                for _ in range(2 if source.random() < conditions.duplicates else 1):
                    due = time.monotonic() + conditions.delay + source.uniform(0, conditions.jitter)
                    heapq.heappush(waiting, (due, number, other, packet))

    def forward(stopped: threading.Event) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(first, selectors.EVENT_READ, second)
            selector.register(second, selectors.EVENT_READ, first)
            while not stopped.is_set():
                timeout = min(0.1, waiting[0][0] - time.monotonic()) if waiting else 0.1
                for key, _ in selector.select(max(0.0, timeout)):
                    receive(key.fd, key.data)
                while waiting and waiting[0][0] <= time.monotonic():
                    _, number, end, packet = heapq.heappop(waiting)
                    with suppress(OSError):  # the device's queue is full: one more lost packet
                        os.write(end, packet)
                    late, packets = number < newest[end], network.packets
                    network.packets = Packets(packets.forwarded + 1, packets.lost, packets.reordered + late)
                    newest[end] = max(newest[end], number)

    with background(forward):
        yield
