#!/usr/bin/python3
"""Instructions of the router per transaction and per login, counted by callgrind, against benches/instructions.json.

Each scenario (src/instructions/) runs N and 2 N times; the difference over N is the figure, so that what happens once
does not count. Only what the router does counts, not the peers it talks to, and only what is compiled from Rust: the C
library and the cryptography choose their code by the processor, so that a figure of theirs is worth nothing on another
machine. Calls of the allocator count separately.

With the same rustc a figure is the same on every machine, and may be 1 % above the one in the file. With another rustc
there is nothing to compare with: the figures are printed, and nothing fails.

    scripts/instructions [SCENARIO...]     count and compare
    scripts/instructions --write           count and write benches/instructions.json"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "benches/instructions.json"
TOLERANCE = 0.01

# How many times each runs: as many as make what varies from time to time (a growing buffer) disappear.
COUNTS = {
    "select": 1000,
    "pipeline_100": 100,
    "row_1mb": 10,
    "select_tls": 1000,
    "pipeline_100_tls": 100,
    "row_1mb_tls": 4,
    "login": 100,
    "gate": 5000,
    "pool": 1000,
    "pool_wait": 1000,
    "pool_wait_prepared": 1000,
}
# Instructions count inside this function.
MEASURED = "*instructions::measured*"
# Connections in memory stand in for the kernel.
NOT_THE_ROUTER = "session::memory::Channel"
# A histogram's buckets are looked through one after the other, so this depends on how long the machine took.
DEPENDS_ON_TIME = "histogram::Histogram::observe_and_bucket"
# Of callgrind's format, https://valgrind.org/docs/manual/cl-format.html
KINDS = {"ob": "object", "cob": "object", "fn": "function", "cfn": "function",
         "fl": "file", "fi": "file", "fe": "file", "cfi": "file", "cfl": "file"}
PLACES = {"ob", "fn", "fl", "fi", "fe"}
ALLOCATOR = {"malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"}


def callgrind(program, scenario, count, directory):
    out = Path(directory) / f"{scenario}.{count}"
    subprocess.run(
        ["valgrind", "--tool=callgrind", "--quiet", f"--toggle-collect={MEASURED}", "--compress-pos=no",
         f"--callgrind-out-file={out}", program, scenario, str(count)],
        check=True, stdin=subprocess.DEVNULL,
    )
    return read(out, Path(program).name)


def read(path, program):
    """Instructions of what is compiled from Rust, by function, and calls of the allocator."""
    names, functions, allocations = {}, {}, 0
    # The place that a line of cost belongs to, and the function that a call calls.
    where = {}
    is_call = False
    with open(path, errors="replace") as lines:
        for line in lines:
            line = line.rstrip("\n")
            key, equals, value = line.partition("=")
            if is_call:
                # The cost of a call. The called function has it as its own.
                is_call = False
            elif equals and key in KINDS:
                kind = KINDS[key]
                number, _, name = value.partition(" ")
                if name:
                    names[kind, number] = name
                where["called" if key == "cfn" else kind if key in PLACES else None] = names[kind, number]
            elif key == "calls":
                is_call = True
                if where["called"].partition("'")[0] in ALLOCATOR:
                    allocations += int(value.split()[0])
            elif line[:1].isdigit():
                function = where["function"]
                counts = not any(left_out in function for left_out in (NOT_THE_ROUTER, DEPENDS_ON_TIME))
                if where["file"].endswith(".rs") and counts and Path(where["object"]).name == program:
                    functions[function] = functions.get(function, 0) + int(line.split()[1])
    return functions, allocations


def measure(program, scenario, directory):
    count = COUNTS[scenario]
    once, twice = (callgrind(program, scenario, times, directory) for times in (count, 2 * count))
    each = {name: (cost - once[0].get(name, 0)) / count for name, cost in twice[0].items()}
    return {
        "instructions": round(sum(each.values())),
        "allocations": round((twice[1] - once[1]) / count, 1),
    }, each


def rustc():
    return subprocess.run(["rustc", "--version"], check=True, capture_output=True, text=True).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(COUNTS))
    parser.add_argument("--write", action="store_true", help="write the figures to the file")
    parser.add_argument("--functions", type=int, default=0, metavar="N", help="print the N most expensive functions of each")
    parser.add_argument("--program", default="target/release/instructions", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.scenarios if name not in COUNTS]
    if unknown:
        parser.error(f"no such scenario: {', '.join(unknown)}")
    scenarios = arguments.scenarios or list(COUNTS)

    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {"figures": {}}
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(os.cpu_count()) as pool:
        measured = dict(zip(scenarios, pool.map(lambda name: measure(arguments.program, name, directory), scenarios)))

    worse = []
    print(f"{'':18}{'instructions':>14}{'before':>14}{'':>9}{'allocations':>14}{'before':>10}")
    for name, (figures, each) in measured.items():
        before = baseline["figures"].get(name)
        line = f"{name:18}{figures['instructions']:>14}"
        if before:
            change = figures["instructions"] / before["instructions"] - 1
            line += f"{before['instructions']:>14}{change:>+9.2%}{figures['allocations']:>14}{before['allocations']:>10}"
            if any(figures[kind] > before[kind] * (1 + TOLERANCE) for kind in figures):
                worse.append(name)
        else:
            line += f"{'':>23}{figures['allocations']:>14}"
        print(line)
        for function, cost in sorted(each.items(), key=lambda item: -item[1])[: arguments.functions]:
            print(f"    {cost:>12.1f}  {function}")

    if arguments.write:
        figures = baseline["figures"] | {name: figures for name, (figures, _) in measured.items()}
        content = {"rustc": rustc(), "figures": {name: figures[name] for name in COUNTS if name in figures}}
        BASELINE.write_text(json.dumps(content, indent=2) + "\n")
    elif worse:
        if baseline["rustc"] != rustc():
            print(f"instructions: not compared: the figures before are of {baseline['rustc']}, this is {rustc()}")
            return
        sys.exit(f"instructions: more than before in {', '.join(worse)}. If that is worth it, say in the commit what for, and "
                 "write the new figures with scripts/instructions --write")


if __name__ == "__main__":
    main()
