"""Identifiers, times, failures, redaction, mailboxes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import failure, ids, times
from shared.home import Home, find_home, gather_secrets, private_secret, write_private
from shared.mailbox import Nudge, Outbox, OutboxFull
from shared.redact import Redactor, redact

pytestmark = pytest.mark.fast


def test_ids_are_canonical() -> None:
    plain = "5D5C9B1E0A7A4B0E9D2C7C3A2F1E4B60"
    assert ids.canonical_id(plain) == "5d5c9b1e-0a7a-4b0e-9d2c-7c3a2f1e4b60"
    for wrong in ("", "abc", "5d5c9b1e", None, 7):
        with pytest.raises(ids.InvalidId):
            ids.canonical_id(wrong)  # type: ignore[arg-type]


def test_tokens_have_their_kind_and_only_hashes_are_kept() -> None:
    token = ids.mint_token(ids.TASK_TOKEN)
    assert token.startswith("mat_")
    assert len(token) == 44
    assert token not in ids.hash_token(token)
    assert len(ids.hash_token(token)) == 64


@given(st.datetimes(timezones=st.just(UTC)))
def test_fine_stamps_round_trip(moment: datetime) -> None:
    assert times.parse_stamp(times.fine_stamp(moment)) == moment


def test_stamps_read_every_form() -> None:
    expected = datetime(2026, 6, 20, 8, 1, 9, 412339, tzinfo=UTC)
    for text in (
        "2026-06-20T08:01:09.412339Z",
        "2026-06-20T10:01:09.412339999+02:00",
        "2026-06-20 08:01:09.412339z",
    ):
        assert times.parse_stamp(text) == expected
    assert times.stamp(datetime(2026, 6, 20, 10, tzinfo=timezone(timedelta(hours=2)))) == (
        "2026-06-20T08:00:00Z"
    )
    assert times.fine_stamp_or_none_value(None) == "0001-01-01T00:00:00Z"
    with pytest.raises(ValueError, match="RFC 3339"):
        times.parse_stamp("yesterday")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("API Error: 401 Invalid API key", failure.AUTH),
        ("prompt is too long: 210000 tokens > 200000 maximum", failure.CONTEXT_OVERFLOW),
        ("API Error: 429 overloaded", failure.CAPACITY),
        ("You\u2019ve hit your limit, resets 5pm", failure.QUOTA),
        ("claude timed out after 2h", failure.AGENT_TIMEOUT),
        ("process exited with exit status 1", failure.PROCESS_FAILURE),
        ("HTTP 503 from upstream", failure.SERVER_ERROR),
        ("dial tcp 127.0.0.1:4010: connection refused", failure.NETWORK),
        ("failed at main.py:401", failure.UNKNOWN),
        ("token rate limit reached, retry later", failure.CAPACITY),
        ("", failure.UNKNOWN),
        ("something odd", failure.UNKNOWN),
    ],
)
def test_error_texts_are_classified(text: str, reason: str) -> None:
    assert failure.classify(text) == reason


def test_poison_is_recognised_only_in_short_outputs() -> None:
    assert failure.poisoned_output("I reached the iteration limit.") == failure.ITERATION_LIMIT
    assert failure.poisoned_output("I reached the iteration limit" + " x" * 200) is None
    assert failure.poisoned_output("") is None
    assert failure.poisoned_error("400 invalid_request_error: bad") == failure.API_INVALID_REQUEST
    assert failure.RESUME_UNSAFE.isdisjoint({failure.RUNTIME_OFFLINE, failure.TIMEOUT})


@pytest.mark.parametrize(
    "secret",
    [
        "mul_" + "a1" * 20,
        "mat_" + "b2" * 20,
        "AKIAABCDEFGHIJKLMNOP",
        "ghp_" + "x" * 36,
        "github_pat_" + "y" * 40,
        "sk-ant-REDACTED" + "k" * 30,
        "xoxb-1234567890-abc",
        "AIza" + "q" * 35,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJlLWhlcmU",
    ],
)
def test_credentials_are_redacted_wherever_they_stand(secret: str) -> None:
    cleaned = redact(f'before {secret} after "{secret}"')
    assert secret not in cleaned
    assert cleaned.startswith("before ")


def test_redaction_keeps_ordinary_text_and_knows_values() -> None:
    ordinary = "tokens: 5 were used; the password field is empty, see basket-weaving"
    assert "see basket-weaving" in redact(ordinary)
    assert redact("MY_DB_PASSWORD=hunter2-long rest") == "MY_[REDACTED CREDENTIAL] rest"
    assert redact("-----BEGIN RSA PRIVATE KEY-----\ncut off") == "[REDACTED PRIVATE KEY]"
    assert redact("Authorization: Bearer abcdefgh12345") == "Authorization: Bearer [REDACTED]"
    assert "pw" not in redact("postgres://user:pw@host/db").replace("[", "")
    redactor = Redactor(["s3cr3t-value", "ab"])
    assert redactor.value({"a": ["x s3cr3t-value", {"b": "ab"}]}) == {
        "a": ["x [REDACTED]", {"b": "ab"}]
    }


async def test_nudges_coalesce_and_are_never_lost(autojump_clock: object) -> None:
    nudge = Nudge()
    for _ in range(5):
        nudge.nudge()
    assert await nudge.wait(0)
    assert not await nudge.wait(3)
    nudge.nudge()
    assert nudge.take()
    assert not nudge.take()


async def test_a_full_outbox_says_so() -> None:
    outbox = Outbox(2)
    outbox.put("1")
    assert outbox.try_put("2")
    assert not outbox.try_put("3")
    with pytest.raises(OutboxFull):
        outbox.put("3")
    assert [await outbox.take(), await outbox.take()] == ["1", "2"]


def test_everything_moves_with_the_home(tmp_path: Path) -> None:
    home = find_home({"BULLPEN_HOME": str(tmp_path)})
    assert home.config_file == tmp_path / "secrets" / "config.json"
    assert find_home({}, home=tmp_path, profile="p").root == tmp_path / "profiles" / "p"
    assert Home(tmp_path, "p").daemon_id_file == tmp_path / "daemon.id"


def test_private_files_are_private_and_secrets_stay(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.json"
    write_private(target, "x")
    assert target.stat().st_mode & 0o777 == 0o600
    assert private_secret(tmp_path / "secret") == private_secret(tmp_path / "secret")
    assert list(tmp_path.glob(".*")) == []


def test_secrets_of_earlier_versions_move_into_their_directory(tmp_path: Path) -> None:
    home = Home(tmp_path)
    gather_secrets(home)
    assert list(tmp_path.iterdir()) == [], "a home without any stays as it is"
    names = ("config.json", "daemon.json", "postgres.password", "session.secret", "up.json")
    for name in names:
        (tmp_path / name).write_text(f"old {name}")
    (tmp_path / "daemon.id").write_text("kept")
    gather_secrets(home)
    gather_secrets(home)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["daemon.id", "secrets"]
    assert home.secrets.stat().st_mode & 0o777 == 0o700
    for name in names:
        assert (home.secrets / name).read_text() == f"old {name}"

    (tmp_path / "config.json").write_text("by an earlier version, later")
    gather_secrets(home)
    assert home.config_file.read_text() == "by an earlier version, later"
    assert not (tmp_path / "config.json").exists()
