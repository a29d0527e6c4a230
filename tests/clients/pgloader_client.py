"""pgloader, which loads files by COPY."""
import os
import re
import subprocess
from pathlib import Path

import harness

PLACE = f"postgresql://app:app@{harness.HOST}:{harness.PORT}/app?sslmode=require"
# The authority that its TLS library trusts.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": os.getcwd(), "SSL_CERT_FILE": harness.CA}
LOAD = """LOAD CSV FROM '{file}' (id, words) INTO {place}
 TARGET TABLE copied TARGET COLUMNS (id, words)
 WITH truncate, fields terminated by '\\t';
"""


def said(*command):
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=harness.LIMIT * 2).stdout


def copy():
    """Inwards only. Its summary says how many rows were read, imported and refused."""
    file, orders = Path("rows.csv").absolute(), Path("orders.load").absolute()
    file.write_text(harness.LINES)
    orders.write_text(LOAD.format(file=file, place=PLACE))
    text = said("pgloader", "--root-dir", os.getcwd(), str(orders))
    summary = re.search(r"copied\"?\s+(\d+)\s+(\d+)", text)
    harness.equal(summary and summary.groups(), ("0", str(len(harness.ROWS))), f"errors and rows of {text[-250:]}")
    return "inwards only"


def tls():
    """It trusts the authorities of its TLS library, and no others."""
    copy()
    others = ENVIRONMENT | {"SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt"}
    result = subprocess.run(["pgloader", "orders.load"], capture_output=True, text=True, env=others, timeout=harness.LIMIT)
    harness.equal("SSL verify error" in result.stdout, True, "an unknown authority is refused")


checks = {
    "tls": tls, "binding": harness.cannot("not offered"), "cancel": harness.cannot("no way to cancel"), "copy": copy,
    "prepared": harness.cannot("none"), "pool": harness.cannot("none"),
}  # fmt: skip
harness.main(re.search(r'"?([\d.]+)', said("pgloader", "--version")).group(1), checks, lambda: None)
