"""A wire between this network namespace and others, whose packets can be dropped.

    wire.py DEVICE OUR_ADDRESS,… NAMESPACE=ADDRESS,… …

A tun device in each with this program between them; addresses are IPv4 with a prefix length, all of one network. Reads
lines `drop ADDRESS` (all from and to it), `drop ADDRESS ADDRESS` (all between these) and the same with `pass` on standard
input and answers `done`; says `up` when it carries packets, and ends, devices and all, at the end of its input. Root only.
"""
import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys

TUNSETIFF, IFF_TUN, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 1, 0x1000, 0x40000000


def tun(name):
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return device


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


def main():
    name, ours, *others = sys.argv[1:]
    at = {}  # where an address is

    def end(addresses):
        device = tun(name)
        for address in addresses.split(","):
            ip("addr", "add", address, "dev", name)
            at[socket.inet_aton(address.split("/")[0])] = device
        ip("link", "set", name, "up")

    end(ours)
    for other in others:
        namespace, theirs = other.split("=")
        with open(f"/run/netns/{namespace}") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        ip("link", "set", "lo", "up")
        end(theirs)
    print("up", flush=True)
    dropped, commands = set(), b""
    while True:
        for ready in select.select([0, *set(at.values())], [], [])[0]:
            if ready == 0:
                data = os.read(0, 4096)
                if not data:
                    return
                *lines, commands = (commands + data).split(b"\n")
                for line in lines:
                    word, *addresses = line.decode().split()
                    which = frozenset(map(socket.inet_aton, addresses))
                    (dropped.add if word == "drop" else dropped.discard)(which)
                    print("done", flush=True)
                continue
            try:
                packet = os.read(ready, 65536)
                source, target = packet[12:16], packet[16:20]
                between = {frozenset({source}), frozenset({target}), frozenset({source, target})}
                if packet[0] >> 4 == 4 and target in at and not dropped & between:
                    os.write(at[target], packet)
            except OSError:
                pass  # a full queue drops packets, as wires do


main()
