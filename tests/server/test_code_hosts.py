"""Skills from code hosts: where requests may go, what an archive may hold, what is said of failures.

No test here reaches a network: connections are streams in memory.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import pytest
import trio
from trio.testing import memory_stream_pair

from server import code_hosts
from server.code_hosts import Source, parse_source, public, unpack
from server.errors import BadGateway, DomainError, Invalid, NotFound

pytestmark = pytest.mark.fast

SKILL = '---\nname: tidy\ndescription: "Tidies up."\n---\n\n# Tidy\n'


def archive(files: dict[str, bytes | str], *, top: str = "repo-abc") -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as made:
        for path, content in files.items():
            made.writestr(f"{top}/{path}", content)
    return data.getvalue()


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("https://github.com/o/r", {}),
        ("github.com/o/r.git", {}),
        ("https://github.com/o/r/tree/v1.2/skills/tidy", {"ref": "v1.2", "path": "skills/tidy"}),
        ("https://github.com/o/r/blob/main/a/SKILL.md", {"ref": "main", "path": "a"}),
        ("https://www.skills.sh/o/r/tidy", {"skill": "tidy"}),
    ],
)
def test_addresses(url: str, source: dict[str, str]) -> None:
    found = parse_source(url)
    assert (found.owner, found.repo) == ("o", "r")
    expected = {"ref": "HEAD", "path": "", "skill": ""} | source
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    "url",
    [
        "tidy",
        "https://clawhub.ai/tidy",
        "https://gitlab.com/o/r",
        "https://github.com.evil.invalid/o/r",
        "https://github.com:8443/o/r",
        "https://user@github.com/o/r",
        "ftp://github.com/o/r",
        "https://github.com/o",
        "https://github.com/../r",
        "https://github.com/o/r/tree/main/../../x",
        "https://github.com/o/r/tree/..",
        "https://github.com/o/r/tree/main/%2e%2e/x",
        "https://github.com/o/r%0d%0aHost:x",
        "https://skills.sh/o/r/a/b",
        "http://[::1",
    ],
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(Invalid):
        parse_source(url)


def test_only_public_addresses_are_connected_to() -> None:
    private = [
        *("127.0.0.1", "10.1.2.3", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("::1", "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::"),
        "224.0.0.1",
    ]
    assert public(private) == []
    assert public(["140.82.121.9", "10.0.0.1", "140.82.121.9"]) == ["140.82.121.9"]


async def test_a_name_that_leads_inside_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def inside(*_: Any, **__: Any) -> Any:
        return [(2, 1, 6, "", ("10.0.0.7", 443))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", inside)
    with pytest.raises(BadGateway, match="no public address"):
        await code_hosts.fetch("codeload.github.com", "/o/r/zip/HEAD")


async def answering(monkeypatch: pytest.MonkeyPatch, answer: bytes, *, closes: bool = True) -> Any:
    """Let the host say this to every request."""

    async def connect(_: str) -> trio.abc.Stream:
        ours, theirs = memory_stream_pair()
        await theirs.send_all(answer)
        if closes:
            await theirs.send_eof()
        return ours

    monkeypatch.setattr(code_hosts, "connect", connect)


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (http("404 Not Found"), NotFound, "no such repository"),
        (http("302 Found", b"", "Location: http://10.0.0.1/"), BadGateway, "does not go there"),
        (http("500 Oops"), BadGateway, "answered with 500"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", BadGateway, "sensibly"),
        (b"", BadGateway, "sensibly"),
        (http("200 OK", b"not a zip"), BadGateway, "no archive"),
    ],
)
async def test_what_is_said_of_a_host_that_does_not_deliver(
    monkeypatch: pytest.MonkeyPatch, answer: bytes, error: type[DomainError], text: str
) -> None:
    await answering(monkeypatch, answer)
    with pytest.raises(error, match=text):
        await code_hosts.fetch_skill(parse_source("https://github.com/o/r"))


async def test_a_silent_host_costs_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    await answering(monkeypatch, b"", closes=False)
    began = trio.current_time()
    with pytest.raises(BadGateway, match="within 30 s"):
        await code_hosts.fetch("codeload.github.com", "/")
    assert trio.current_time() - began == 30


async def test_an_endless_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_hosts, "LARGEST_ARCHIVE", 1000)
    await answering(monkeypatch, http("200 OK", b"x" * 2000))
    with pytest.raises(Invalid, match="too large"):
        await code_hosts.fetch("codeload.github.com", "/")


def source(**where: str) -> Source:
    return Source(url="u", owner="o", repo="repo", **where)


def test_a_skill_is_taken_with_its_texts() -> None:
    data = archive(
        {
            "README.md": "no part of it",
            "skills/tidy/SKILL.md": SKILL,
            "skills/tidy/scripts/run.sh": "#!/bin/sh\n",
            "skills/tidy/logo.png": b"\x89PNG",
            "skills/tidy/data": b"\xff\xfe\x00",
            "skills/other/SKILL.md": "# Other\n",
        }
    )
    for where in ({"path": "skills/tidy"}, {"skill": "tidy"}):
        found = unpack(data, source(**where))
        assert (found.name, found.description) == ("tidy", "Tidies up.")
        assert found.content == SKILL
        assert dict(found.files) == {"scripts/run.sh": "#!/bin/sh\n"}
        assert found.skipped == 2
    other = unpack(data, source(path="skills/other"))
    assert (other.name, other.description) == ("other", "")
    with pytest.raises(Invalid, match="skills/other, skills/tidy"):
        unpack(data, source())
    only = archive({"deep/down/SKILL.md": SKILL})
    assert unpack(only, source()).name == "tidy"


def test_what_an_archive_may_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    link = zipfile.ZipInfo("repo-abc/link")
    link.external_attr = 0o120777 << 16
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as made:
        made.writestr("repo-abc/SKILL.md", SKILL)
        made.writestr("repo-abc/../../etc/passwd", "root")
        made.writestr("repo-abc//abs", "x")
        made.writestr(link, "/etc/passwd")
        made.writestr("repo-abc/ok.md", "fine")
    assert dict(unpack(data.getvalue(), source()).files) == {"ok.md": "fine"}
    bomb = archive({"SKILL.md": SKILL, "zeros.txt": b"0" * (20 * 1024 * 1024)})
    assert len(bomb) < 100_000
    with pytest.raises(Invalid, match=r"zeros\.txt is too large"):
        unpack(bomb, source())
    many = archive({"SKILL.md": SKILL} | {f"f{n}.md": "x" for n in range(200)})
    with pytest.raises(Invalid, match="128 files"):
        unpack(many, source())
    monkeypatch.setattr(code_hosts, "MOST_ENTRIES", 5)
    with pytest.raises(Invalid, match="more than 5"):
        unpack(many, source())
    with pytest.raises(Invalid, match=r"no SKILL\.md"):
        unpack(archive({"README.md": "x"}), source())
