"""Hosts on one network segment: a network namespace for each, on a bridge of this host. Linux, root only.

A host that is cut off loses its port of the bridge: its packets vanish, in both directions, and nobody resets anything.
"""

import contextlib
import ctypes
import os
import subprocess

CLONE_NEWNET = 0x40000000


def ip(*arguments):
    subprocess.run(["ip", *map(str, arguments)], check=True)


class Segment:
    """`name`: of the bridge, up to 8 characters. `hosts`: their addresses by name; `address` is this host's."""

    def __init__(self, name, address, hosts):
        self.name, self.address, self.hosts = name, address, hosts
        self.made = False

    def port(self, host):
        return f"{self.name}-{list(self.hosts).index(host)}"

    def namespace(self, host):
        return f"{self.name}-{host}"

    def lay(self):
        self.made = True
        ip("link", "add", self.name, "type", "bridge")
        ip("addr", "add", f"{self.address}/24", "dev", self.name)
        ip("link", "set", self.name, "up")
        for host, address in self.hosts.items():
            namespace, port = self.namespace(host), self.port(host)
            ip("netns", "add", namespace)
            ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            ip("link", "set", port, "master", self.name, "up")
            ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", namespace, "link", "set", "lo", "up")
            ip("-n", namespace, "link", "set", "eth0", "up")

    def remove(self):
        if not self.made:
            return
        for host in self.hosts:
            subprocess.run(["ip", "netns", "del", self.namespace(host)], stderr=subprocess.DEVNULL)
            subprocess.run(["ip", "link", "del", self.port(host)], stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "link", "del", self.name], stderr=subprocess.DEVNULL)

    @contextlib.contextmanager
    def inside(self, host):
        """This thread, and what it starts, is on that host; on this one if there is none of that name."""
        if host not in self.hosts:
            yield
            return
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.namespace(host)}", os.O_RDONLY)
        try:
            enter(there)
            yield
        finally:
            enter(here)
            os.close(here)
            os.close(there)

    def cut(self, host):
        ip("link", "set", self.port(host), "nomaster")

    def join(self, host):
        ip("link", "set", self.port(host), "master", self.name)


def enter(namespace):
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
