"""The columns of the answers of PgBouncer's console, with their types: RowDescription as it is sent.

    columns.py HOST PORT COMMAND…

Prints a line for each SHOW command that has rows: its name, and `column:type` for each column.
"""

import socket
import struct
import sys

TYPES = {25: "text", 23: "int4", 20: "int8", 1700: "numeric"}


class Console:
    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), timeout=30)
        self.buffer = b""
        words = b"user\0admin\0database\0pgbouncer\0\0"
        self.socket.sendall(struct.pack("!II", len(words) + 8, 196608) + words)
        while self.message()[0] != b"Z":
            pass

    def message(self):
        while True:
            if len(self.buffer) >= 5:
                (length,) = struct.unpack("!I", self.buffer[1:5])
                if len(self.buffer) > length:
                    tag, body = self.buffer[:1], self.buffer[5 : length + 1]
                    self.buffer = self.buffer[length + 1 :]
                    return tag, body
            data = self.socket.recv(65536)
            if not data:
                raise EOFError("the console hung up")
            self.buffer += data

    def columns(self, command):
        text = command.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!I", len(text) + 4) + text)
        columns = []
        while True:
            tag, body = self.message()
            if tag == b"T":
                (count,) = struct.unpack("!H", body[:2])
                at = 2
                for _ in range(count):
                    end = body.index(b"\0", at)
                    (kind,) = struct.unpack("!I", body[end + 7 : end + 11])
                    columns.append(f"{body[at:end].decode()}:{TYPES[kind]}")
                    at = end + 19
            elif tag == b"Z":
                return columns


console = Console(sys.argv[1], int(sys.argv[2]))
for name in sys.argv[3:]:
    columns = console.columns(f"SHOW {name}")
    if columns:
        print(name, *columns)
