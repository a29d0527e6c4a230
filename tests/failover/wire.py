"""A wire between this network namespace and another, whose packets can be dropped.

    wire.py NAMESPACE DEVICE OUR_ADDRESS THEIR_ADDRESS…

Two tun devices with this program between them; addresses are IPv4 with a prefix length. Reads lines `drop ADDRESS` and
`pass ADDRESS` on standard input and answers `done`; says `up` when it carries packets, and ends, devices and all, at the end
of its input. Root only.
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
    namespace, name, ours, *theirs = sys.argv[1:]
    here = tun(name)
    ip("addr", "add", ours, "dev", name)
    ip("link", "set", name, "up")
    with open(f"/run/netns/{namespace}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    there = tun(name)
    ip("link", "set", "lo", "up")
    for address in theirs:
        ip("addr", "add", address, "dev", name)
    ip("link", "set", name, "up")
    print("up", flush=True)
    dropped, commands = set(), b""
    other = {here: there, there: here}
    while True:
        for ready in select.select([0, here, there], [], [])[0]:
            if ready == 0:
                data = os.read(0, 4096)
                if not data:
                    return
                *lines, commands = (commands + data).split(b"\n")
                for line in lines:
                    word, address = line.decode().split()
                    (dropped.add if word == "drop" else dropped.discard)(socket.inet_aton(address))
                    print("done", flush=True)
                continue
            try:
                packet = os.read(ready, 65536)
                if packet[0] >> 4 == 4 and not dropped & {packet[12:16], packet[16:20]}:
                    os.write(other[ready], packet)
            except OSError:
                pass  # a full queue drops packets, as wires do


main()
