"""How Bullpen is installed here, and changing that through the program that installed it.

A new version is tried beside the one in use before that is touched; it is then changed in place by
its own installer, with a copy of the whole environment kept as the way back (spec 03 §22, adapted
to Python). Where versions come from is the installer's business alone. Nothing here decides when.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

import attrs
import structlog
import trio

from daemon import threads
from shared.home import Home

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

log = structlog.get_logger(__name__)

NAME: Final = "bullpen"

LOOK_UP: Final = 60.0
"""Seconds to learn the newest version: some installers ask for every package there is."""

INSTALL: Final = 600.0
"""Seconds one step of an installation may take: it brings a database along."""

PROVE: Final = 60.0
"""Seconds the new version may take to say who it is and that it could start."""

COPY: Final = 300.0
"""Seconds a way back may take, whatever else is being cancelled."""

_RELEASE: Final = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")


class UpdateError(Exception):
    """An update did not happen; the text says why, and what is installed is what was before."""


class NotUpdatable(Exception):
    """The installation is not ours to change; the text says who changes it, and how."""


def release(version: str) -> tuple[int, int, int] | None:
    """Read N.N.N; None for anything else, such as a development version. ◇"""
    match = _RELEASE.fullmatch(version.strip())
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def is_newer(version: str, than: str) -> bool:
    """Whether both are releases and the first is later. ◇"""
    one, other = release(version), release(than)
    return one is not None and other is not None and one > other


@attrs.frozen(kw_only=True)
class Installation:
    """An environment with Bullpen in it, and what changes it. `tool` is the installer's program."""

    kind: Literal["uv tool", "pipx", "pip"]
    prefix: Path
    tool: str

    @property
    def program(self) -> Path:
        return self.prefix / "bin" / NAME

    def outdated(self) -> list[str]:
        """The command that prints, as JSON, which packages there are newer versions of."""
        wanted = ["--outdated", "--format", "json"]
        if self.kind == "uv tool":
            return [self.tool, "pip", "list", *wanted, "--python", str(self._python)]
        if self.kind == "pipx":  # whose pip may be uv's, which knows less
            return [self.tool, "runpip", self.prefix.name, "list", *wanted]
        pip = [self.tool, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        return [*pip, "list", *wanted, "--not-required"]

    def beside(self, folder: Path, version: str) -> list[list[str]]:
        """The commands that make a second environment with a version in it."""
        python, wanted = str(folder / "bin" / "python"), f"{NAME}=={version}"
        if self.kind == "uv tool":
            return [
                [self.tool, "venv", "--python", str(self._python), str(folder)],
                [self.tool, "pip", "install", "--python", python, wanted],
            ]
        return [
            [str(self._python), "-m", "venv", str(folder)],
            [python, "-m", "pip", "--disable-pip-version-check", "install", wanted],
        ]

    def upgrade(self, version: str) -> list[str]:
        """The command that changes this environment.

        Tools upgrade within what they were asked for when they installed, which is respected: the
        outcome is compared with the version wanted.
        """
        if self.kind == "uv tool":
            return [self.tool, "tool", "upgrade", self.prefix.name]
        if self.kind == "pipx":
            return [self.tool, "upgrade", self.prefix.name]
        pip = [self.tool, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        return [*pip, "install", f"{NAME}=={version}"]

    @property
    def _python(self) -> Path:
        return self.prefix / "bin" / "python"


def find_installation(
    prefix: Path | None = None,
    *,
    base_prefix: Path | None = None,
    origin: Callable[[], metadata.Distribution] = partial(metadata.distribution, NAME),
    env: Mapping[str, str] = os.environ,
) -> Installation:
    """Find out who installed the running Bullpen. Raises NotUpdatable."""
    prefix = prefix or Path(sys.prefix)
    try:
        distribution = origin()
    except metadata.PackageNotFoundError:
        raise NotUpdatable("Bullpen runs from a checkout: update it there (git pull)") from None
    said = _origin(distribution.read_text("direct_url.json"))
    if said:
        raise NotUpdatable(said)
    if prefix == (base_prefix or Path(sys.base_prefix)):
        raise NotUpdatable(
            "Bullpen is installed among the system's own packages: use what installed it there"
        )
    if not os.access(prefix, os.W_OK):
        raise NotUpdatable(f"{prefix} is not yours to change: its owner updates it")
    if (prefix / "uv-receipt.toml").exists():
        return Installation(kind="uv tool", prefix=prefix, tool=_tool("uv", env))
    if (prefix / "pipx_metadata.json").exists():
        return Installation(kind="pipx", prefix=prefix, tool=_tool("pipx", env))
    python = prefix / "bin" / "python"
    if not any(prefix.glob("lib/python*/site-packages/pip/__main__.py")):
        raise NotUpdatable(f"there is no pip in {prefix}: update Bullpen with what installed it")
    return Installation(kind="pip", prefix=prefix, tool=str(python))


def _tool(name: str, env: Mapping[str, str]) -> str:
    found = shutil.which(name, path=env.get("PATH"))
    if found is None:
        raise NotUpdatable(f"Bullpen was installed by {name}, which is not in the PATH")
    return found


def _origin(text: str | None) -> str:
    """Say how to update what came from a place of its own; empty if it came from an index."""
    if not text:
        return ""
    try:
        told = json.loads(text)
        place, folder = str(told["url"]), told.get("dir_info")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "Bullpen's installation does not say where it came from: install it again"
    if isinstance(folder, dict) and folder.get("editable"):
        return f"Bullpen runs from the checkout {place}: update it there (git pull)"
    return f"Bullpen was installed from {place}, not by its name: install it from there again"


class Installer:
    """Looks up, proves, switches and goes back, for one home and CLI profile.

    `env` is what its programs run with. What happens is logged, and `say` is told for people.
    """

    def __init__(
        self,
        installation: Installation,
        home: Home,
        env: Mapping[str, str],
        *,
        say: Callable[[str], None] = lambda _: None,
        install_within: float = INSTALL,
    ) -> None:
        self.installation = installation
        of_one_start = {"BULLPEN_PARENT_PID", "BULLPEN_SERVICE", "NOTIFY_SOCKET"}
        self._env = {name: value for name, value in env.items() if name not in of_one_start}
        self._home = home
        self._say = say
        self._install_within = install_within
        self._folder = home.base / "update"

    @property
    def previous(self) -> Path:
        """The copy of the environment before the last switch."""
        return self._folder / "previous"

    async def latest(self) -> str | None:
        """The newest version there is, None if that is ours. Raises UpdateError."""
        output = await run(self.installation.outdated(), self._env, limit=LOOK_UP)
        try:
            rows: list[dict[str, Any]] = json.loads(output)
            found = [str(row["latest_version"]) for row in rows if _same(row["name"])]
        except (ValueError, KeyError, TypeError) as error:
            raise UpdateError(f"{self.installation.kind} said nothing readable: {error}") from error
        return found[0] if found else None

    async def prove(self, version: str) -> None:
        """Install a version beside ours and have it say that it could start. Raises UpdateError."""
        folder = self._folder / "proof"
        await threads.in_thread(partial(shutil.rmtree, folder, ignore_errors=True))
        self._say(f"Trying {version} beside the version in use")
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            for command in self.installation.beside(folder, version):
                await run(command, self._env, limit=self._install_within)
            await self._verify(folder / "bin" / NAME, version)
        finally:
            with trio.move_on_after(COPY, shield=True):
                await threads.in_thread(partial(shutil.rmtree, folder, ignore_errors=True))

    async def switch(self, version: str) -> None:
        """Change the environment in use; when that fails, put it back. Raises UpdateError."""
        prefix = self.installation.prefix
        new = self._folder / "previous.new"
        try:
            await threads.in_thread(partial(_copy, prefix, new))
            await threads.in_thread(partial(shutil.rmtree, self.previous, ignore_errors=True))
            new.replace(self.previous)
        except OSError as error:
            raise UpdateError(f"no copy of {prefix} could be made: {error}") from error
        self._say(f"Switching to {version}")
        try:
            command = self.installation.upgrade(version)
            await run(command, self._env, limit=self._install_within)
            await self._verify(self.installation.program, version)
        except BaseException:
            with trio.move_on_after(COPY, shield=True):
                await threads.in_thread(self.go_back)
            raise

    def go_back(self) -> None:
        """Put the environment back as it was before the last switch. Raises UpdateError."""
        prefix = self.installation.prefix
        restored, broken = (prefix.with_name(f".{prefix.name}.{s}") for s in ("back", "broken"))
        if not self.previous.is_dir():
            raise UpdateError("there is no earlier version to go back to")
        self._say("Going back to the version before")
        try:
            _copy(self.previous, restored)
            shutil.rmtree(broken, ignore_errors=True)
            prefix.replace(broken)
            restored.replace(prefix)
        except OSError as error:
            raise UpdateError(f"{prefix} could not be put back: {error}") from error
        shutil.rmtree(broken, ignore_errors=True)

    def has_failed(self, version: str) -> bool:
        """Whether this version was gone back from, in whichever process."""
        with suppress(OSError):
            return version in self._failures.read_text().split()
        return False

    def note_failure(self, version: str) -> None:
        """Remember not to try this version again by itself: it would end the daemon every time."""
        with suppress(OSError), self._failures.open("a") as file:
            file.write(f"{version}\n")

    @property
    def _failures(self) -> Path:
        return self._folder / "failed"

    async def _verify(self, program: Path, version: str) -> None:
        said = (await run([str(program), "--version"], self._env, limit=PROVE)).split()
        if said[1:2] != [version]:
            told = " ".join(said) or "nothing"
            raise UpdateError(f"{version} was wanted, but what is installed says: {told}")
        where = ["--home", str(self._home.base)]
        where += ["--profile", self._home.profile] if self._home.profile else []
        await run([str(program), *where, "daemon", "start", "--check"], self._env, limit=PROVE)


@contextmanager
def hold_update(home: Home) -> Iterator[None]:
    """Be the only one to change the installation from this home. Raises UpdateError."""
    path = home.base / "update" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UpdateError("another update is under way") from error
        yield


async def run(argv: list[str], env: Mapping[str, str], *, limit: float) -> str:
    """Run a command and return its standard output. Raises UpdateError with what it said last."""
    name = shlex.join([Path(argv[0]).name, *argv[1:3]])
    failure: BaseException | None = None
    with trio.move_on_after(limit) as within:
        try:
            done = await trio.run_process(
                argv,
                env=dict(env),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                start_new_session=True,
                deliver_cancel=_kill_group,
            )
        except* OSError as group:
            failure = group.exceptions[0]
    if within.cancelled_caught:
        raise UpdateError(f"{name} took over {limit:g} s")
    if failure is not None:
        raise UpdateError(f"{name}: {failure}") from failure
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).decode("utf-8", "replace").splitlines()
        raise UpdateError(f"{name}: {said[-1].strip() if said else f'exit {done.returncode}'}")
    output: bytes = done.stdout
    return output.decode("utf-8", "replace")


async def _kill_group(process: trio.Process) -> None:
    """Installers start others, which must not go on writing; none has anything to tidy for us."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await trio.lowlevel.checkpoint()


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target, symlinks=True)


def _same(name: Any) -> bool:
    return str(name).replace("_", "-").lower() == NAME
