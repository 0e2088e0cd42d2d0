"""The server's settings: read once from the environment, checked here, passed down. Pure.

Every rule about a setting stands in `from_environment`; a violation names the variable, so that the
person who set it knows what to change.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from shared.home import Home, find_home
from shared.log import LEVELS

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_PORT: Final = 8080
"""The protocol's port (spec 01 §1.1)."""


class ConfigError(Exception):
    """A setting is wrong; the text names the variable and the rule."""


DAY: Final = 86400.0


@attrs.frozen(kw_only=True)
class Kept:
    """How long what is only looked back at is kept; seconds."""

    deliveries: float = 30 * DAY
    """Calls of webhooks, with their bodies."""
    skipped_runs: float = 90 * DAY
    """Runs of autopilots that did not begin."""
    archived: float = 180 * DAY
    """What people have archived in their inbox."""
    machines: float = 7 * DAY
    """Machines that went away and that nothing refers to."""


@attrs.frozen(kw_only=True)
class Config:
    """All settings of one server process. Durations are seconds, sizes bytes."""

    home: Home
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    """0 means any free port."""
    database_url: str | None = attrs.field(default=None, repr=False)
    """None means the embedded Postgres below the home directory."""
    database_pool: int = 20
    jwt_secret: str = attrs.field(default="", repr=False)
    """Signs sessions. Empty until the server fills in the one kept in the home directory."""
    session_ttl: float = 30 * 86400.0
    public_url: str = ""
    """How people reach the server; empty means: as the request at hand did."""
    allowed_origins: tuple[str, ...] = ()
    """Other origins whose pages may call the API and open the browser websocket."""
    trusted_proxies: tuple[Network, ...] = ()
    """Peers whose X-Forwarded-* headers are believed."""
    max_body: int = 10 * 1024 * 1024
    offline_after: float = 45.0
    """A runtime that is silent for so long is shown offline, and what it runs as unreachable."""
    offline_grace: float = 900.0
    """For so long after that it may come back before what it runs is failed."""
    sweep_interval: float = 10.0
    kept: Kept = Kept()
    agent_runs_per_issue: int = 20
    """How many runs agents may cause on one issue in an hour before a person is asked."""
    agent_runs_per_agent: int = 60
    agent_depth: int = 24
    """How long a chain of runs may get in which each caused the next."""
    drain: float = 5.0
    """How long open connections may go on after the order to stop."""
    smtp_host: str = ""
    """The mail server; without one, sign-in codes stand in the log."""
    smtp_port: int = 587
    smtp_security: str = "starttls"
    smtp_user: str = ""
    smtp_password: str = attrs.field(default="", repr=False)
    smtp_from: str = ""
    allow_signup: bool = False
    """Whether people whom nobody invited may make an account."""
    allowed_emails: tuple[str, ...] = ()
    allowed_email_domains: tuple[str, ...] = ()
    """Who may make one all the same; if anybody is named, nobody else may."""
    metrics_token: str = attrs.field(default="", repr=False)
    """Without one, /metrics answers only to this machine."""
    log_level: str = "info"
    user_email: str = "local@bullpen.local"
    """Whom the first start creates."""
    user_name: str = "You"

    @property
    def secure(self) -> bool:
        """Whether people reach the server through TLS, so that cookies may demand it."""
        return self.public_url.startswith("https://")


def from_environment(env: Mapping[str, str], **overrides: Any) -> Config:
    """Read the settings; `overrides` (None means not given) win over the environment.

    Raises ConfigError naming the variable.
    """
    home = overrides.pop("home", None)
    read = _Reader(env)
    values: dict[str, Any] = {
        "home": home if isinstance(home, Home) else find_home(env, home=home),
        "host": read.text("BULLPEN_HOST", "127.0.0.1"),
        "port": read.number("BULLPEN_PORT", DEFAULT_PORT, 0, 65535),
        "database_url": _database_url(read.text("BULLPEN_DATABASE_URL", "")),
        "database_pool": read.number("BULLPEN_DATABASE_POOL", 20, 2, 1000),
        "jwt_secret": _jwt_secret(read.text("BULLPEN_JWT_SECRET", "")),
        "session_ttl": read.seconds("BULLPEN_SESSION_TTL", 30 * 86400.0, 60, 365 * 86400),
        "public_url": _public_url(read.text("BULLPEN_PUBLIC_URL", "")),
        "allowed_origins": _origins(read.items("BULLPEN_ALLOWED_ORIGINS")),
        "trusted_proxies": _networks(read.items("BULLPEN_TRUSTED_PROXIES")),
        "max_body": read.number("BULLPEN_MAX_BODY", 10 * 1024 * 1024, 1024, 1 << 30),
        "offline_after": read.seconds("BULLPEN_OFFLINE_AFTER", 45.0, 1, 86400),
        "offline_grace": read.seconds("BULLPEN_OFFLINE_GRACE", 900.0, 0, 7 * 86400),
        "sweep_interval": read.seconds("BULLPEN_SWEEP_INTERVAL", 10.0, 0.1, 3600),
        "kept": Kept(
            deliveries=read.days("BULLPEN_KEEP_DELIVERIES_DAYS", 30),
            skipped_runs=read.days("BULLPEN_KEEP_SKIPPED_RUNS_DAYS", 90),
            archived=read.days("BULLPEN_KEEP_ARCHIVED_DAYS", 180),
            machines=read.days("BULLPEN_KEEP_MACHINES_DAYS", 7),
        ),
        "agent_runs_per_issue": read.number("BULLPEN_AGENT_RUNS_PER_ISSUE", 20, 1, 10_000),
        "agent_runs_per_agent": read.number("BULLPEN_AGENT_RUNS_PER_AGENT", 60, 1, 10_000),
        "agent_depth": read.number("BULLPEN_AGENT_DEPTH", 24, 1, 10_000),
        "drain": read.seconds("BULLPEN_DRAIN", 5.0, 0, 600),
        **_mail(read),
        "allow_signup": read.flag("BULLPEN_ALLOW_SIGNUP", default=False),
        "allowed_emails": _lower(read.items("BULLPEN_ALLOWED_EMAILS")),
        "allowed_email_domains": _lower(read.items("BULLPEN_ALLOWED_EMAIL_DOMAINS")),
        "metrics_token": read.text("BULLPEN_METRICS_TOKEN", ""),
        "log_level": _level(read.text("BULLPEN_LOG_LEVEL", "info")),
        "user_email": read.text("BULLPEN_USER_EMAIL", "local@bullpen.local").lower(),
        "user_name": read.text("BULLPEN_USER_NAME", "You"),
    }
    values.update({name: value for name, value in overrides.items() if value is not None})
    if not 0 <= values["port"] <= 65535:
        raise ConfigError(f"--port must be between 0 and 65535, not {values['port']}")
    _check_intervals(values["offline_after"], values["sweep_interval"], read.beat())
    return Config(**values)


MISSED_BEATS: Final = 3
"""Beats a machine may miss before it counts as away: one may be late, one lost."""


def _check_intervals(offline_after: float, sweep_interval: float, beat: float) -> None:
    """Refuse intervals that make healthy machines come and go. Raises ConfigError."""
    least = MISSED_BEATS * beat
    if offline_after < least:
        raise ConfigError(
            f"BULLPEN_OFFLINE_AFTER must be at least {least:g}, not {offline_after:g}: machines beat"
            f" every {beat:g} s, and healthy ones would count as away between two beats. Where all"
            " of them beat faster, tell the server so by BULLPEN_DAEMON_HEARTBEAT_INTERVAL as well"
        )
    if sweep_interval > offline_after:
        raise ConfigError(
            f"BULLPEN_SWEEP_INTERVAL must not be above BULLPEN_OFFLINE_AFTER ({offline_after:g}),"
            f" not {sweep_interval:g}: machines that are away would be noticed far too late"
        )


_BEAT: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ms|s|m)")


@attrs.frozen
class _Reader:
    env: Mapping[str, str]

    def text(self, name: str, default: str) -> str:
        return self.env.get(name, "").strip() or default

    def items(self, name: str) -> tuple[str, ...]:
        return tuple(item for part in self.text(name, "").split(",") if (item := part.strip()))

    def flag(self, name: str, *, default: bool) -> bool:
        text = self.text(name, "").lower()
        if not text:
            return default
        if text not in {"1", "true", "yes", "on", "0", "false", "no", "off"}:
            raise ConfigError(f"{name} must be true or false, not {text!r}")
        return text in {"1", "true", "yes", "on"}

    def one_of(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        text = self.text(name, default).lower()
        if text not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {text!r}")
        return text

    def number(self, name: str, default: int, low: int, high: int) -> int:
        return int(self._bounded(name, default, low, high, int))

    def seconds(self, name: str, default: float, low: float, high: float) -> float:
        return self._bounded(name, default, low, high, float)

    def beat(self) -> float:
        """Seconds between two beats of a machine: the daemons' setting, if the server has it too."""
        text = self.text("BULLPEN_DAEMON_HEARTBEAT_INTERVAL", "15s")
        match = _BEAT.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"BULLPEN_DAEMON_HEARTBEAT_INTERVAL must be a duration such as 15s, not {text!r}"
            )
        return float(match[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0}[match[2]]

    def days(self, name: str, default: float) -> float:
        """Seconds, from a number of days."""
        return DAY * self._bounded(name, default, 0.01, 36500, float)

    def _bounded(self, name: str, default: float, low: float, high: float, kind: type) -> float:
        text = self.text(name, "")
        if not text:
            return default
        try:
            value: float = kind(text)
        except ValueError:
            raise ConfigError(f"{name} must be a number, not {text!r}") from None
        if not low <= value <= high:
            raise ConfigError(f"{name} must be between {low:g} and {high:g}, not {text}")
        return value


_SMTP_PORTS: Final = {"starttls": 587, "tls": 465, "none": 25}


def _mail(read: _Reader) -> dict[str, Any]:
    """The mail server; only `BULLPEN_SMTP_HOST` switches mail on."""
    host = read.text("BULLPEN_SMTP_HOST", "")
    security = read.one_of("BULLPEN_SMTP_SECURITY", "starttls", tuple(_SMTP_PORTS))
    sender = read.text("BULLPEN_SMTP_FROM", "")
    user, password = read.text("BULLPEN_SMTP_USER", ""), read.text("BULLPEN_SMTP_PASSWORD", "")
    if host and "@" not in sender:
        raise ConfigError("BULLPEN_SMTP_FROM must be the address mail comes from")
    if bool(user) != bool(password):
        raise ConfigError("BULLPEN_SMTP_USER and BULLPEN_SMTP_PASSWORD belong together")
    if user and security == "none":
        raise ConfigError("BULLPEN_SMTP_SECURITY=none would send the password in clear text")
    return {
        "smtp_host": host,
        "smtp_port": read.number("BULLPEN_SMTP_PORT", _SMTP_PORTS[security], 1, 65535),
        "smtp_security": security,
        "smtp_user": user,
        "smtp_password": password,
        "smtp_from": sender,
    }


def _lower(items: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(item.lower().removeprefix("@") for item in items)


def _database_url(text: str) -> str | None:
    if not text:
        return None
    if urlsplit(text).scheme not in {"postgres", "postgresql"}:
        raise ConfigError("BULLPEN_DATABASE_URL must start with postgres:// or postgresql://")
    return text


def _jwt_secret(text: str) -> str:
    if text and len(text) < 32:  # HMAC-SHA256 wants a key as long as its digest
        raise ConfigError("BULLPEN_JWT_SECRET must have at least 32 characters")
    return text


def _public_url(text: str) -> str:
    if not text:
        return ""
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ConfigError(f"BULLPEN_PUBLIC_URL must be an http or https address, not {text!r}")
    return text.rstrip("/")


def _origins(items: tuple[str, ...]) -> tuple[str, ...]:
    """Scheme and host, as browsers say it; a star would let every page act for who is signed in."""
    found: list[str] = []
    for item in items:
        parts = urlsplit(item.rstrip("/"))
        if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path or parts.query:
            raise ConfigError(
                f"BULLPEN_ALLOWED_ORIGINS must be like https://host or http://host:port, not {item!r}"
            )
        found.append(f"{parts.scheme}://{parts.netloc.lower()}")
    return tuple(found)


def _networks(items: tuple[str, ...]) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(item, strict=False) for item in items)
    except ValueError as error:
        raise ConfigError(f"BULLPEN_TRUSTED_PROXIES: {error}") from None


def _level(text: str) -> str:
    if text.lower() not in LEVELS:
        raise ConfigError(f"BULLPEN_LOG_LEVEL must be one of {', '.join(LEVELS)}, not {text!r}")
    return text.lower()
