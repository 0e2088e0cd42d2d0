"""The machine's daemon id, and the names it had before."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from daemon.identity import (
    IdentityError,
    find_daemon_id,
    legacy_daemon_ids,
    load_daemon_id,
    load_machine_key,
    machine_proof,
    new_daemon_id,
)
from shared.home import Home
from tests.support.fake_server import uid

pytestmark = pytest.mark.fast


def test_ids_are_version_7_and_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_000 * 1_000_000)
    early = new_daemon_id()
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_001 * 1_000_000)
    late = new_daemon_id()
    parsed = uuid.UUID(early)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert parsed.int >> 80 == 1_700_000_000_000
    assert early < late


def test_the_id_is_minted_once_and_private(tmp_path: Path) -> None:
    home = Home(tmp_path)
    minted = load_daemon_id(home)
    assert load_daemon_id(home) == minted
    assert load_daemon_id(Home(tmp_path, "work")) == minted, "profiles share it"
    assert home.daemon_id_file.read_text() == minted + "\n"
    assert home.daemon_id_file.stat().st_mode & 0o777 == 0o600


def test_looking_for_the_id_mints_none(tmp_path: Path) -> None:
    assert find_daemon_id(Home(tmp_path)) == ""
    assert not Home(tmp_path).daemon_id_file.exists()
    assert load_daemon_id(Home(tmp_path)) == find_daemon_id(Home(tmp_path, "work"))


def test_the_key_is_made_once_private_and_each_profiles_own(tmp_path: Path) -> None:
    home = Home(tmp_path)
    key = load_machine_key(home)
    assert len(key) >= 40
    assert load_machine_key(home) == key != load_machine_key(Home(tmp_path, "work"))
    assert home.machine_key_file.stat().st_mode & 0o777 == 0o600
    home.machine_key_file.unlink()
    home.machine_key_file.mkdir()
    with pytest.raises(IdentityError, match="key"):
        load_machine_key(home)


def test_a_proof_is_worth_something_at_one_server_and_workspace() -> None:
    proofs = {
        machine_proof(key, server_url=url, workspace_id=workspace)
        for key in ("k1", "k2")
        for url in ("http://a", "http://b")
        for workspace in ("w1", "w2")
    }
    assert len(proofs) == 8
    assert not any("k1" in proof for proof in proofs)
    again = machine_proof("k1", server_url="http://a", workspace_id="w1")
    assert again in proofs


def test_any_uuid_is_accepted_and_junk_replaced(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.daemon_id_file.write_text(uid("x").upper() + "\n")
    assert load_daemon_id(home) == uid("x")
    home.daemon_id_file.write_bytes(b"\xff junk")
    replaced = load_daemon_id(home)
    assert load_daemon_id(home) == replaced != uid("x")


def test_a_profiles_own_id_is_promoted(tmp_path: Path) -> None:
    home = Home(tmp_path, "work")
    home.root.mkdir(parents=True)
    (home.root / "daemon.id").write_text(uid("old"))
    assert load_daemon_id(home) == uid("old")
    assert load_daemon_id(Home(tmp_path)) == uid("old")


def test_an_unreadable_id_stops_the_start(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.daemon_id_file.mkdir()
    with pytest.raises(IdentityError, match=r"daemon\.id"):
        load_daemon_id(home)


def test_legacy_ids(tmp_path: Path) -> None:
    (tmp_path / "profiles" / "a").mkdir(parents=True)
    (tmp_path / "profiles" / "a" / "daemon.id").write_text(uid("a"))
    (tmp_path / "profiles" / "b" / "daemon.id").mkdir(parents=True)  # unreadable
    (tmp_path / "profiles" / "c").mkdir()
    (tmp_path / "profiles" / "c" / "daemon.id").write_text(uid("me"))
    assert legacy_daemon_ids(Home(tmp_path), hostname="mbp.local", daemon_id=uid("me")) == (
        "mbp",
        "mbp.local",
        uid("a"),
    )
    named = legacy_daemon_ids(Home(tmp_path, "p"), hostname="mbp", daemon_id=uid("me"))
    assert named == ("mbp", "mbp.local", "mbp-p", "mbp.local-p", uid("a"))
    assert legacy_daemon_ids(Home(tmp_path / "no"), hostname="", daemon_id="x") == ()
