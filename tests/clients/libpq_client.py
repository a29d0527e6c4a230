"""psql and pgbench of the version that the second argument names, with their libpq. They have no pool, so each writer has a
psql of its own."""
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "versions"))
import harness  # noqa: E402
import programs  # noqa: E402

BIN = programs.postgres(sys.argv[2])
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}


def psql(*arguments, more=""):
    return [BIN / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose", "-d", harness.DSN + more, *arguments]


def said(command, text=None):
    result = subprocess.run(command, input=text, capture_output=True, text=True, env=ENVIRONMENT, timeout=harness.LIMIT)
    harness.equal((result.returncode, result.stderr), (0, ""), f"end of {command[0].name}")
    return result.stdout


def tls(more=""):
    harness.equal(said(psql("-c", "SELECT 1", more=more)), "1\n", "the answer")


def cancel():
    """As Ctrl-C does. psql ends at a first one that comes before the statement runs."""
    command = psql("-c", harness.SLEEP)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as sleeper:
        time.sleep(2)
        sleeper.send_signal(signal.SIGINT)
        text = sleeper.communicate(timeout=harness.LIMIT)[1]
    harness.equal("ERROR:  57014:" in text, True, f"57014 in {text}")


def copy():
    said(psql("-c", "TRUNCATE copied"))
    said(psql("-c", "\\copy copied FROM STDIN"), harness.LINES)
    harness.equal(said(psql("-c", "\\copy (SELECT * FROM copied ORDER BY id) TO STDOUT")), harness.LINES, "what COPY brings out")


def prepared():
    """Four sessions of pgbench, in which each statement is prepared."""
    before = int(said(psql("-c", harness.COUNT)))
    script = f"\\set number random(1, 100)\nSELECT 1 / (:number::int + :number);\n{harness.ADD};\n"
    command = [BIN / "pgbench", "-n", "-M", "prepared", "-c", "4", "-t", str(harness.TIMES), "-f", "/dev/stdin", harness.DSN]
    result = subprocess.run(command, input=script, capture_output=True, text=True, env=ENVIRONMENT, timeout=harness.LIMIT * 2)
    harness.equal(result.returncode, 0, f"end of pgbench: {result.stderr}")
    harness.equal(int(said(psql("-c", harness.COUNT))), before + 4 * harness.TIMES, "the counter")


class Session:
    """A psql that is asked one statement after the other."""

    def __init__(self):
        self.process = subprocess.Popen(psql(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                        bufsize=1, env=ENVIRONMENT)  # fmt: skip

    def ask(self, query, wanted):
        self.process.stdin.write(f"{query};\n")
        answer = self.process.stdout.readline()
        if answer != wanted:
            rest = self.process.communicate(timeout=5)[0]
            raise RuntimeError(answer + rest)


def writes():
    mine = threading.local()

    def one(writer, number):
        if not hasattr(mine, "session"):
            mine.session = Session()
        try:
            mine.session.ask(f"INSERT INTO written VALUES ({writer}, {number}) RETURNING number", f"{number}\n")
        except Exception:
            del mine.session
            raise

    harness.write(one)
    # Each psql ends with its input.
    os._exit(0)


checks = {
    "tls": tls, "binding": lambda: tls(" channel_binding=require"), "cancel": cancel, "copy": copy, "prepared": prepared,
    "pool": harness.cannot("none"),
}  # fmt: skip
version = programs.said_version(str(BIN / "psql"))
harness.main(version, checks, writes)
