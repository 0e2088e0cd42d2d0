"""What an agent's process can reach of this machine: not Bullpen's secrets, nobody else's task.

Each attack is carried out by a real isolated process, as root and as an ordinary user, behind
bubblewrap and behind the warden's own namespaces.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.support import ordinary_user
from tests.support.bubblewrap import has_bubblewrap
from tests.support.isolated_run import OTHER, TASK, WORKSPACE, marker_of
from tests.support.scripted_agent import ROOT

pytestmark = [
    pytest.mark.together,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has namespaces"),
]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that is not below /tmp, which is hidden from agents for a reason of its own."""
    with tempfile.TemporaryDirectory(prefix="bullpen-attack-", dir="/var/lib") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(params=["bubblewrap", "namespaces"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "bubblewrap" and not has_bubblewrap():
        pytest.skip("no bubblewrap on this machine, and it cannot be installed")
    return str(request.param)


@pytest.fixture(params=["root", "ordinary"])
def user(request: pytest.FixtureRequest) -> str:
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("not root")
    if request.param == "ordinary" and not ordinary_user.is_possible():
        pytest.skip("no way to become an ordinary user")
    return str(request.param)


def attack(
    backend: str,
    user: str,
    place: Path,
    *scripts: str,
    first: str = "",
    variables: Mapping[str, str] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Run scripts as an isolated agent; `first` runs as root before, in a mount namespace.

    `variables` are what the agent's owner has put into its environment.
    """
    words = ["-m", "tests.support.isolated_run", backend, str(place), *scripts]
    if user == "root":
        command, env = [sys.executable, "-P", *words], {"PYTHONPATH": str(ROOT)}
    else:
        command, env = ordinary_user.command(words, place), {}
    env |= {"AGENT_VARIABLES": json.dumps(dict(variables))}
    if first:
        command = ["unshare", "-m", "sh", "-c", f'{first} && exec "$@"', "sh", *command]
    done = subprocess.run(
        command, env=os.environ | env, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_no_path_leads_to_a_secret(backend: str, user: str, place: Path) -> None:
    [hunt] = attack(backend, user, place, "hunt")
    assert hunt["out"] == ["hunted"], hunt


def test_an_agents_variables_reach_nothing_outside(backend: str, user: str, place: Path) -> None:
    """LD_PRELOAD would run code in what isolates; LD_DEBUG tells just as well who has heard of it."""
    told = place / "told"
    told.mkdir(mode=0o777)
    told.chmod(0o777)
    variables = {"LD_DEBUG": "files", "LD_DEBUG_OUTPUT": str(told / "ld"), "KEPT": "as it was"}
    [run] = attack(
        backend, user, place, 'echo "$KEPT"; env | grep -c ^LD_DEBUG', variables=variables
    )
    assert run["out"] == ["as it was", "2"], run
    programs = [
        line.rpartition(" ")[2].rpartition("/")[2]
        for path in told.iterdir()
        for line in path.read_text().splitlines()
        if "initialize program" in line
    ]
    assert "sh" in programs, programs
    assert set(programs) <= {"sh", "dash", "bash", "env", "grep"}


def test_a_program_that_a_server_names_is_not_run_outside(
    backend: str, user: str, place: Path
) -> None:
    """An admin's runtime profile may name what an agent has written into its directory."""
    [told] = attack(backend, user, place, "version")
    assert told["out"] == [["1.2.3", ""]]
    assert not list((place / "elsewhere").rglob("ran"))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_the_same_files_by_another_mount_are_hidden_too(
    backend: str, user: str, place: Path
) -> None:
    """A container, a backup or a chroot may show a home a second time, or the processes."""
    with tempfile.TemporaryDirectory(prefix="bullpen-mirror-", dir="/var/lib") as mirror:
        Path(mirror).chmod(0o755)
        (place / "mirrored").mkdir()
        (place / "proc").mkdir()
        first = f"mount --bind {place} {mirror} && mount -t proc proc {place}/proc"
        [hunt, other] = attack(
            backend,
            user,
            place,
            "hunt",
            f"cat {mirror}/home/secrets/config.json; cat {place}/proc/@NEIGHBOUR@/environ",
            first=first,
        )
    assert hunt["out"] == ["hunted"], hunt
    assert marker_of(place) not in "\n".join(other["out"])


def test_the_hunt_finds_what_is_not_hidden(place: Path) -> None:
    [hunt] = attack("none", "root" if os.geteuid() == 0 else "ordinary", place, "hunt")
    found = "\n".join(hunt["out"])
    for name in ("config.json", "session.secret", "postgres.password", f"{OTHER}.jsonl",
                 f"{OTHER}/workdir/file", "daemon.log", "/environ"):  # fmt: skip
        assert name in found


_ESCAPES = {
    "umount": "umount -l {home}; umount -R {home}; cat {home}/secrets/*",
    "remount": "mount -o remount,rw,bind {home} /mnt; cat /mnt/secrets/*",
    "bind": "mount --bind / /mnt; cat /mnt{home}/secrets/*",
    "nested": "unshare -Urm sh -c 'umount -l {home}; mount --bind / /mnt; "
    "cat /mnt{home}/secrets/* {home}/secrets/*'",
    "overlay": "unshare -Urm sh -c 'mkdir -p /tmp/u /tmp/w; mount -t overlay o "
    "-o lowerdir=/,upperdir=/tmp/u,workdir=/tmp/w /mnt; cat /mnt{home}/secrets/*'",
    "init": "nsenter -t 1 -m cat {home}/secrets/config.json; cat /proc/1/root{home}/secrets/*; "
    "cat /proc/1/cwd/../*/workdir/*; ls -l /proc/1/fd/",
    "outside": "cat /proc/@NEIGHBOUR@/environ; nsenter -t @NEIGHBOUR@ -m cat {home}/secrets/*; "
    "kill -9 @NEIGHBOUR@ && echo {marker}-killed",
    "above": "cat ../../{other}/workdir/file; cd ..; cd ..; cat {other}/workdir/file; ls | grep 44",
    "tmp": "cat {root}/{workspace}/{other}/tmp/file /tmp/shared-*",
    "devices": "find /dev -type b | grep . && echo {marker}-block; "
    "mknod /tmp/d b 254 0 && echo {marker}-made",
    "helper": "echo '|/bin/false' > /proc/sys/kernel/core_pattern && echo {marker}-core; "
    "echo x > /proc/sysrq-trigger && echo {marker}-sysrq",
    "chroot": "chroot /proc/1/root cat {home}/secrets/config.json",
    "link": "ln {home}/secrets/config.json l; ln -s {home}/secrets s; cat l s/*",
    "installation": "echo x >> {source}/shared/home.py && echo {marker}-code",
    "shm": "cat /dev/shm/* | grep . && echo {marker}-shm",
}


def test_no_way_out(backend: str, user: str, place: Path) -> None:
    source = ROOT if user == "root" or os.geteuid() != 0 else "/opt/bullpen-as-user/source"
    names = {
        "home": place / "home",
        "root": place / "elsewhere",
        "workspace": WORKSPACE,
        "other": OTHER,
        "marker": marker_of(place),
        "source": source,
    }
    shared = Path(tempfile.gettempdir()) / "shared-attack"
    memory = Path("/dev/shm/bullpen-attack")
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    try:
        for path in (shared, memory):
            path.write_text(marker_of(place))
            path.chmod(0o644)
        scripts = [script.format(**names) for script in _ESCAPES.values()]
        results = attack(backend, user, place, *scripts)
    finally:
        shared.unlink(missing_ok=True)
        memory.unlink(missing_ok=True)
    escaped = {
        name: result
        for name, result in zip(_ESCAPES, results, strict=True)
        if marker_of(place) in "\n".join(result["out"]) or "44444444" in "\n".join(result["out"])
    }
    assert escaped == {}
    assert Path("/proc/sys/kernel/core_pattern").read_text() == pattern


_SOCKETS = """
import socket, sys
for name in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.connect(name.replace("@", chr(0)))
            print("reached", name)
        except OSError as error:
            print("refused", name)
with socket.socket(socket.AF_UNIX) as mine:
    mine.bind(chr(0) + "bullpen-inside")
    mine.listen()
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(chr(0) + "bullpen-inside")
        print("reached my own")
"""


def test_sockets_of_others_are_out_of_reach(backend: str, user: str, place: Path) -> None:
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    in_tmp = Path(tempfile.mkdtemp(prefix="bp-")) / "s"
    in_tmp.parent.chmod(0o755)
    in_run = Path("/run/bullpen-attack.sock")
    abstract = f"\0bullpen-attack-{os.getpid()}"
    places: list[str] = [str(in_tmp), abstract]
    if os.geteuid() == 0:
        places.append(str(in_run))
    sockets = []
    try:
        for name in places:
            one = socket.socket(socket.AF_UNIX)
            sockets.append(one)
            one.bind(name)
            one.listen()
            if name[0] == "/":
                Path(name).chmod(0o777)
        tried = " ".join(name.replace("\0", "@") for name in places)
        python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
        [result] = attack(backend, user, place, f"{python} -c '{_SOCKETS}' {tried}")
    finally:
        for one in sockets:
            one.close()
        in_tmp.unlink(missing_ok=True)
        in_tmp.parent.rmdir()
        if str(in_run) in places:
            in_run.unlink(missing_ok=True)
    reached = [line for line in result["out"] if line.startswith("reached /")]
    assert reached == [], result
    assert "reached my own" in result["out"], result
    if release >= (6, 12):
        assert not any(line.startswith("reached @") for line in result["out"]), result


def test_what_an_agent_needs_is_there(backend: str, user: str, place: Path) -> None:
    root = place / "elsewhere"
    task = root / WORKSPACE / TASK
    results = attack(
        backend,
        user,
        place,
        "cat mine; echo; pwd; echo new > made; stat -c %u made; echo tmp > /tmp/kept",
        "ps ax -o pid= | wc -l; sleep 1000 & (setsid sleep 1000 &) ; kill -9 $$",
        "unshare -Ur sh -c 'id -u' && unshare -Urm sh -c 'mount -t tmpfs t /mnt && echo mounted'",
        f"touch {root}/.repos/{WORKSPACE}/x || echo read-only; ls -d {place}/home/bin; "
        "cat /tmp/kept; test -w $HOME && echo home",
        "exit 7",
        "python3 -c 'import os; print(os.openpty())' || /usr/bin/python3 -c 'import os;os.openpty()'",
        "getent hosts localhost | head -1; test -e /proc/self/status && echo proc",
    )
    first, second, third, fourth, fifth, sixth, seventh = results
    own = 0 if user == "root" else (os.geteuid() or ordinary_user.UID)
    assert first["out"] == ["mine", str(task / "workdir"), str(own)], first
    assert (task / "workdir" / "made").stat().st_uid == own
    assert (task / "tmp" / "kept").read_text() == "tmp\n", "the temporary directory is on disk"
    assert int(second["out"][0]) <= 6, second
    assert second["code"] == -9
    assert third["out"] == ["0", "mounted"], third
    assert fourth["out"] == ["read-only", f"{place}/home/bin", "tmp", "home"], fourth
    assert fifth["code"] == 7
    assert sixth["code"] == 0, sixth
    assert "proc" in seventh["out"], seventh
    print(backend, user, "start took", sorted(round(r["took"] * 1000) for r in results), "ms")


_SANDBOX = (
    "bwrap --new-session --die-with-parent --unshare-net --unshare-pid --ro-bind / / --dev /dev"
)
"""As agent programs start it."""


def test_an_agents_own_sandbox_works(backend: str, user: str, place: Path) -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("no bubblewrap to make a sandbox with")
    asked, full, own = attack(
        backend,
        user,
        place,
        f"{_SANDBOX} --unshare-user --bind /proc /proc --bind $PWD $PWD sh -c 'echo inside > made; cat made' 2>&1",
        f"{_SANDBOX} --proc /proc echo inside 2>&1",
        "unshare -Urm sh -c 'mount -t tmpfs t /mnt && echo inside' 2>&1",
    )
    assert asked["out"] == ["inside"], asked
    assert own["out"] == ["inside"], own
    if user == "ordinary" or os.geteuid() != 0:
        assert full["out"] == ["inside"], full
    else:  # its own /proc would let root write what the kernel runs outside (docs/isolation.md)
        assert full["code"] != 0, full
