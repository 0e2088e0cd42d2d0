"""The server's settings: what is read, and what is refused naming the variable."""

from __future__ import annotations

from typing import Any

import pytest

from server.config import DAY, ConfigError, from_environment

pytestmark = pytest.mark.fast


def read(**env: str) -> Any:
    return from_environment(env, home="/nonexistent")


def test_without_settings_there_is_no_mail_no_signing_up_and_no_other_origin() -> None:
    config = read()
    assert (config.smtp_host, config.allow_signup, config.allowed_origins) == ("", False, ())
    assert config.kept.deliveries == 30 * DAY


def test_settings_are_read() -> None:
    config = read(
        BULLPEN_SMTP_HOST="mail",
        BULLPEN_SMTP_FROM="me@example.org",
        BULLPEN_SMTP_SECURITY="TLS",
        BULLPEN_ALLOW_SIGNUP="yes",
        BULLPEN_ALLOWED_EMAIL_DOMAINS="@Example.org, x.org",
        BULLPEN_ALLOWED_ORIGINS="https://Pages.example.org/,http://localhost:3000",
        BULLPEN_KEEP_ARCHIVED_DAYS="0.5",
    )
    assert (config.smtp_port, config.smtp_security) == (465, "tls")
    assert config.allow_signup
    assert config.allowed_email_domains == ("example.org", "x.org")
    assert config.allowed_origins == ("https://pages.example.org", "http://localhost:3000")
    assert config.kept.archived == DAY / 2


@pytest.mark.parametrize(
    ("name", "env"),
    [
        ("SMTP_FROM", {"SMTP_HOST": "mail"}),
        ("SMTP_FROM", {"SMTP_HOST": "mail", "SMTP_FROM": "nobody"}),
        ("SMTP_USER", {"SMTP_USER": "x"}),
        ("SMTP_SECURITY", {"SMTP_SECURITY": "sometimes"}),
        ("SMTP_PORT", {"SMTP_PORT": "0"}),
        (
            "SMTP_SECURITY",
            {"SMTP_USER": "x", "SMTP_PASSWORD": "y", "SMTP_SECURITY": "none"},
        ),
        ("ALLOW_SIGNUP", {"ALLOW_SIGNUP": "maybe"}),
        ("ALLOWED_ORIGINS", {"ALLOWED_ORIGINS": "*"}),
        ("ALLOWED_ORIGINS", {"ALLOWED_ORIGINS": "example.org"}),
        ("ALLOWED_ORIGINS", {"ALLOWED_ORIGINS": "https://example.org/page"}),
        ("KEEP_DELIVERIES_DAYS", {"KEEP_DELIVERIES_DAYS": "0"}),
        ("KEEP_MACHINES_DAYS", {"KEEP_MACHINES_DAYS": "soon"}),
        ("OFFLINE_AFTER", {"OFFLINE_AFTER": "3"}),
        ("OFFLINE_AFTER", {"OFFLINE_AFTER": "4", "DAEMON_HEARTBEAT_INTERVAL": "2s"}),
        ("SWEEP_INTERVAL", {"SWEEP_INTERVAL": "60"}),
        ("DAEMON_HEARTBEAT_INTERVAL", {"DAEMON_HEARTBEAT_INTERVAL": "often"}),
    ],
)
def test_what_is_wrong_is_named(name: str, env: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"BULLPEN_{name}"):
        read(**{f"BULLPEN_{key}": value for key, value in env.items()})


def test_machines_that_beat_faster_may_be_missed_sooner() -> None:
    env = {"BULLPEN_OFFLINE_AFTER": "4", "BULLPEN_DAEMON_HEARTBEAT_INTERVAL": "1s"}
    assert read(**env, BULLPEN_SWEEP_INTERVAL="1").offline_after == 4
