"""Look for secrets everywhere a process can look; print each place where one was found.

`python hunter.py SECRET-BACKWARDS,… PLACE…`: the whole file system is walked, /proc included. Files are
read if they are new (an hour) and small, or below one of the places; of processes everything is
tried. Standard library only, and no name of Bullpen's: it is what an attacker would bring.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

LARGEST = 1 << 20
NEW = 3600.0


def holds(path: str, secrets: list[bytes]) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        data = os.read(handle, LARGEST)
        return any(secret in data for secret in secrets)
    except OSError:
        return False
    finally:
        os.close(handle)


def walk(top: str, secrets: list[bytes], places: list[str]) -> list[str]:
    found = []
    since = time.time() - NEW
    stack = [top]
    while stack:
        folder = stack.pop()
        if folder in ("/proc", "/sys"):
            continue
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        for entry in entries:
            try:
                about = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if any(secret.decode() in entry.name for secret in secrets):
                found.append(entry.path)
            if stat.S_ISDIR(about.st_mode):
                stack.append(entry.path)
            elif stat.S_ISREG(about.st_mode):
                known = any(entry.path.startswith(place) for place in places)
                is_new = about.st_mtime > since and about.st_size <= LARGEST
                if (known or is_new) and holds(entry.path, secrets):
                    found.append(entry.path)
    return found


def processes(secrets: list[bytes], places: list[str]) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        if int(pid) == os.getpid():
            continue
        for name in ("environ", "cmdline"):
            path = f"/proc/{pid}/{name}"
            if holds(path, secrets):
                found.append(path)
        for link in ("root", "cwd"):
            for place in places:
                found += walk(f"/proc/{pid}/{link}{place}", secrets, [f"/proc/{pid}/"])
        try:
            handles = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208
        except OSError:
            handles = []
        for handle in handles:
            path = f"/proc/{pid}/fd/{handle}"
            try:
                if stat.S_ISREG(Path(path).stat().st_mode) and holds(path, secrets):
                    found.append(path)
            except OSError:
                continue
    return found


def main() -> None:
    secrets = [word[::-1].encode() for word in sys.argv[1].split(",")]
    places = sys.argv[2:]
    found = walk("/", secrets, places) + processes(secrets, places)
    for path in sorted(set(found)):
        print(f"found {path}")
    print("hunted")


if __name__ == "__main__":
    main()
