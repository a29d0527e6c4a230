"""What the suites are made from: archives of pinned versions, fetched once and checked, unpacked and built."""
import hashlib
import os
import shutil
import subprocess
import urllib.request
from pathlib import Path

from servers import ROOT, fail


class Cache:
    def __init__(self):
        place = subprocess.run([ROOT / "scripts/install-packages", "--cache-dir"], capture_output=True, text=True, check=True).stdout.strip()
        self.directory = os.path.join(place, "suites")
        os.makedirs(self.directory, exist_ok=True)

    def archive(self, source):
        """The file with the wanted checksum; another one is never used, wherever it comes from."""
        path = self.path(source["urls"][0].rsplit("/", 1)[1])
        if path.exists() and digest(path) == source["sha256"]:
            return path
        problems = []
        for url in source["urls"]:
            print(f"suites: fetching {url}", flush=True)
            part = path.with_name(path.name + ".part")
            try:
                request = urllib.request.Request(url, headers={"User-Agent": "trunkline-suites"})
                with urllib.request.urlopen(request, timeout=60) as answer, open(part, "wb") as file:
                    shutil.copyfileobj(answer, file)
            except OSError as error:
                problems.append(f"{url}: {error}")
                continue
            if digest(part) == source["sha256"]:
                part.rename(path)
                return path
            problems.append(f"{url}: its checksum is {digest(part)}")
        fail("cannot be fetched: " + "; ".join(problems))

    def unpacked(self, source):
        """Its directory. It keeps what is built in it, unless the building did not end."""
        archive = self.archive(source)
        directory = self.path(archive.name + ".d")
        if not self.made(directory):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            subprocess.run(["tar", "-xf", archive, "-C", directory, "--strip-components=1", "--no-same-owner"], check=True)
        return directory

    def venv(self, name, requirements):
        """The Python of a virtual environment with these packages."""
        directory = self.path(f"venv-{name}")
        if not self.made(directory):
            print(f"suites: installing {' '.join(requirements)}", flush=True)
            shutil.rmtree(directory, ignore_errors=True)
            # Debian's: one in PATH may be somebody's own, which `postgres` cannot read.
            for command in (["/usr/bin/python3", "-m", "venv", directory], [directory / "bin/pip", "install", "--quiet", *requirements]):
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            self.finish(directory)
        return directory / "bin/python"

    def path(self, name):
        return Path(self.directory) / name

    @staticmethod
    def made(directory):
        return (directory / ".made").exists()

    @staticmethod
    def finish(directory):
        (directory / ".made").touch()


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
