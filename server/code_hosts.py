"""Fetches skills from code hosts: one GET, to a public address of a host we name, and never further.

Woken by the import endpoint. What the user writes decides the owner, the repository and the place in
it, not where the request goes: the host is one of ours, its address is looked at before it is
connected to (a name that leads into a private network is refused), redirects are not followed, and
size and time are bounded. The archive is read in memory; nothing of it becomes a file.
"""

from __future__ import annotations

import io
import re
import ssl
import stat
import zipfile
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import attrs
import h11
import trio
import yaml

from server.errors import BadGateway, Invalid, NotFound
from shared.skillbundle import is_safe_path

ARCHIVES: Final = "codeload.github.com"
LARGEST_ARCHIVE: Final = 32 * 1024 * 1024
LARGEST_FILE: Final = 1024 * 1024
LARGEST_SKILL: Final = 8 * 1024 * 1024
MOST_FILES: Final = 128
MOST_ENTRIES: Final = 20_000
DEADLINE: Final = 30.0

_WORD: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_REF: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_MAIN: Final = "skill.md"
_NAT64: Final = ip_network("64:ff9b::/96")
"""Addresses of the sixth version that stand for ones of the fourth, which may be private."""

_BINARY: Final = frozenset(
    [
        ".png",
        ".jpg",
        ".jpeg",
        ".gif",
        ".webp",
        ".ico",
        ".pdf",
        ".zip",
        ".gz",
        ".tar",
        ".tgz",
        ".7z",
        ".rar",
        ".exe",
        ".dll",
        ".so",
        ".dylib",
        ".bin",
        ".woff",
        ".woff2",
        ".ttf",
        ".otf",
        ".eot",
        ".mp3",
        ".mp4",
        ".mov",
        ".avi",
        ".wav",
        ".class",
        ".jar",
        ".pyc",
        ".wasm",
        ".db",
    ]
)


@attrs.frozen(kw_only=True)
class Source:
    """A place in a repository: a directory, or the name of a skill somewhere in it."""

    url: str
    owner: str
    repo: str
    ref: str = "HEAD"
    path: str = ""
    skill: str = ""


@attrs.frozen(kw_only=True)
class Found:
    """A skill as it lies in an archive: its texts by path, `SKILL.md` apart."""

    name: str
    description: str
    content: str
    files: Mapping[str, str]
    skipped: int = 0
    """Files that are no text."""


def parse_source(text: str) -> Source:
    """Read what the user wants to import. Raises Invalid for what is no supported address."""
    url = text.strip()
    if "://" not in url:
        url = f"https://{url}"
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").removeprefix("www.")
        plain = parts.port in (None, 443, 80) and parts.username is None
    except ValueError:
        raise Invalid("url is not an address") from None
    segments = [unquote(segment) for segment in parts.path.split("/") if segment]
    if (
        parts.scheme not in ("https", "http")
        or not plain
        or host not in ("github.com", "skills.sh")
    ):
        raise Invalid(
            "unsupported source: skills are imported from github.com and skills.sh,"
            " as https://github.com/owner/repository/tree/branch/directory"
        )
    if len(segments) < 2 or not all(_WORD.fullmatch(part) for part in segments[:2]):
        raise Invalid("url must name a repository: https://github.com/owner/repository")
    owner, repo, *rest = segments
    known = {"url": url, "owner": owner, "repo": repo.removesuffix(".git")}
    if host == "skills.sh":
        if len(rest) > 1 or not all(_WORD.fullmatch(part) for part in rest):
            raise Invalid("url must name one skill: https://skills.sh/owner/repository/skill")
        return Source(**known, skill=rest[0] if rest else "")
    if not rest:
        return Source(**known)
    if rest[0] not in ("tree", "blob") or len(rest) < 2 or not _REF.fullmatch(rest[1]):
        raise Invalid(
            "url must name a directory: https://github.com/owner/repository/tree/branch/…"
        )
    inside = rest[2:]
    if inside and inside[-1].lower() == _MAIN:
        inside = inside[:-1]
    path = "/".join(inside)
    if path and not is_safe_path(path):
        raise Invalid("url names no directory of the repository")
    return Source(**known, ref=rest[1], path=path)


async def fetch_skill(source: Source) -> Found:
    """Fetch a skill. Raises BadGateway when the host does not answer, NotFound, Invalid."""
    data = await fetch(ARCHIVES, f"/{source.owner}/{source.repo}/zip/{source.ref}")
    return await trio.to_thread.run_sync(unpack, data, source)


async def fetch(host: str, path: str) -> bytes:
    """GET a path of a host over TLS. Raises BadGateway, NotFound for a 404."""
    try:
        with trio.fail_after(DEADLINE):
            async with await connect(host) as stream:
                return await _get(stream, host, path)
    except trio.TooSlowError:
        raise BadGateway(f"{host} did not answer within {DEADLINE:.0f} s") from None
    except (OSError, trio.BrokenResourceError, ssl.SSLError) as error:
        raise BadGateway(f"{host} cannot be reached: {error}") from error
    except h11.ProtocolError as error:
        raise BadGateway(f"{host} did not answer sensibly: {error}") from error


async def connect(host: str) -> trio.abc.Stream:
    """Open a TLS connection to a public address of the host."""
    found = await trio.socket.getaddrinfo(host, 443, type=trio.socket.SOCK_STREAM)
    failure = OSError("its name leads to no public address")
    for address in public(str(place[4][0]) for place in found):
        try:
            stream = await trio.open_tcp_stream(address, 443)
        except OSError as error:
            failure = error
            continue
        return trio.SSLStream(
            stream, ssl.create_default_context(), server_hostname=host, https_compatible=True
        )
    raise failure


def public(addresses: Any) -> list[str]:
    """Those of the addresses that everybody can reach. Pure."""
    return [one for one in dict.fromkeys(addresses) if _is_public(one)]


def _is_public(text: str) -> bool:
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return address.is_global and not address.is_multicast


async def _get(stream: trio.abc.Stream, host: str, path: str) -> bytes:
    peer = h11.Connection(h11.CLIENT)
    headers = [("Host", host), ("User-Agent", "bullpen"), ("Connection", "close")]
    request = peer.send(h11.Request(method="GET", target=path, headers=headers))
    await stream.send_all((request or b"") + (peer.send(h11.EndOfMessage()) or b""))
    body = bytearray()
    while True:
        event = peer.next_event()
        if event is h11.NEED_DATA:
            peer.receive_data(bytes(await stream.receive_some(65536)))
        elif isinstance(event, h11.Response):
            _check(event.status_code, host)
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > LARGEST_ARCHIVE:
                size = LARGEST_ARCHIVE // 1024 // 1024
                raise Invalid(f"the repository is too large to import from: over {size} MiB")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            raise BadGateway(f"{host} did not answer sensibly")


def _check(status: int, host: str) -> None:
    if status == 404:
        raise NotFound("there is no such repository or branch, or it is not public")
    if 300 <= status < 400:
        raise BadGateway(f"{host} wants to send this server elsewhere, and it does not go there")
    if status != 200:
        raise BadGateway(f"{host} answered with {status}")


def unpack(data: bytes, source: Source) -> Found:
    """Find the skill in an archive whose only top directory is the repository's. Raises Invalid."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise BadGateway("what the host sent is no archive") from None
    entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if len(entries) > MOST_ENTRIES:
        raise Invalid(f"the repository has more than {MOST_ENTRIES} files")
    regular = {
        path: info
        for path, info in entries.items()
        if is_safe_path(path) and not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16)
    }
    main = _main(sorted(regular), source)
    folder = "/".join(main.split("/")[:-1])
    content = _text(archive, regular[main])
    if content is None:
        raise Invalid("its SKILL.md is no text")
    files: dict[str, str] = {}
    size, skipped = len(content.encode()), 0
    for path, info in regular.items():
        inside = path.removeprefix(f"{folder}/") if folder else path
        if path == main or (folder and inside == path):
            continue
        binary = PurePosixPath(path).suffix.lower() in _BINARY
        text = None if binary else _text(archive, info)
        if text is None:
            skipped += 1
            continue
        files[inside] = text
        size += len(text.encode())
        if len(files) > MOST_FILES or size > LARGEST_SKILL:
            raise Invalid(
                f"the skill is too large: at most {MOST_FILES} files and {LARGEST_SKILL} bytes"
            )
    head = _head(content)
    name = str(head.get("name") or folder.rpartition("/")[2] or source.repo).strip()
    return Found(
        name=name[:255],
        description=str(head.get("description") or "").strip(),
        content=content,
        files=files,
        skipped=skipped,
    )


def _main(paths: list[str], source: Source) -> str:
    """The path of the SKILL.md that is meant."""
    mains = [path for path in paths if path.rpartition("/")[2].lower() == _MAIN]
    wanted = [path for path in mains if path.rpartition("/")[0] == source.path]
    if source.skill:
        wanted = [path for path in mains if path.split("/")[-2:-1] == [source.skill]]
    elif not source.path and not wanted and len(mains) == 1:
        wanted = mains
    if wanted:
        return min(wanted, key=len)
    there = ", ".join(path.rpartition("/")[0] or "/" for path in mains[:8])
    raise Invalid(
        "there is no SKILL.md in that place"
        + (f"; the repository has some in: {there}" if mains else "")
    )


def _text(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str | None:
    """A file's text; None for what is none."""
    try:
        with archive.open(info) as file:
            data = file.read(LARGEST_FILE + 1)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError):
        raise BadGateway("what the host sent is damaged") from None
    if len(data) > LARGEST_FILE:
        name = info.filename.partition("/")[2]
        raise Invalid(f"{name} is too large: at most {LARGEST_FILE} bytes")
    try:
        return None if b"\0" in data else data.decode()
    except UnicodeDecodeError:
        return None


def _head(content: str) -> Mapping[str, Any]:
    match = re.match(r"---\r?\n(.*?)\r?\n---\s", content, re.DOTALL)
    try:
        head = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return head if isinstance(head, dict) else {}
