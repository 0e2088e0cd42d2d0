"""The command line's HTTP client: one blocking call at a time, errors as CliError (spec 06 §20.1).

A person gets one attempt and a prompt answer. An agent inside a task would lose its work to a server
that is away, so there silence, 5xx and 401, which is what a server without its database may answer,
are waited out, as long as the task lives and BULLPEN_TASK_PATIENCE allows; for a minute also the page
of a proxy or portal that answers in the server's place. What may have reached the
server is repeated only when that changes nothing; otherwise the agent is told once the server is back.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

import httpx

from daemon.cli.errors import ABSENT, INVALID, REFUSED, UNREACHABLE, USAGE, CliError
from daemon.cli.settings import Settings
from shared import __version__

_IDEMPOTENT: Final = frozenset({"GET", "PUT", "DELETE"})
_AWAY: Final = frozenset({401, 500, 502, 503, 504})
_NOT_DONE: Final = frozenset({401, 503})
"""What says that nothing was done, whatever was asked."""
_LONGEST_WAIT: Final = 5.0
_BUG: Final = 60.0
"""Seconds after which 500, and what is not the server's, are no longer taken for a passing trouble."""
_UPSTREAM: Final = "upstream_unavailable"
"""The code with which the server says that somebody else, whom it asked for us, is away."""
_SIZE: Final = frozenset({413, 414, 431})
"""Refusals that anybody on the way may mean."""
_PROGRESS: Final = 30.0
"""Seconds between two lines that say what is waited for."""
_ERROR_LIMIT: Final = 4096
_BODY_LIMIT: Final = 100 * 1024 * 1024
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class Rejected(CliError):
    """The server answered with an error; `body` is its decoded JSON object, if it was one."""

    def __init__(
        self, text: str, code: int, *, status: int, body: dict[str, Any], detail: str
    ) -> None:
        super().__init__(text, code, detail=detail)
        self.status = status
        self.body = body


class _Told(dict[str, Any]):
    """An object of an answer; a member that is not there is the answerer's fault, not ours."""

    def __missing__(self, key: str) -> Any:
        raise CliError(f"the server's answer has no {key!r}; is it a Bullpen server?")


class Api:
    """Calls to one server as one user or agent. Use as a context manager."""

    def __init__(
        self,
        server_url: str,
        token: str,
        *,
        workspace_id: str = "",
        agent_id: str = "",
        task_id: str = "",
        timeout: float = 30.0,
        patience: float = 0.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {
            "Authorization": f"Bearer {token}",
            "X-Client-Platform": "cli",
            "X-Client-Version": __version__,
            "X-Client-OS": {"Darwin": "macos"}.get(platform.system(), platform.system().lower()),
            "X-Workspace-ID": workspace_id,
            "X-Agent-ID": agent_id,
            "X-Task-ID": task_id,
        }
        self.server_url = server_url
        self.workspace_id = workspace_id
        self._patience = patience
        self._transport = transport
        self._timeout = timeout
        try:
            self._client = httpx.Client(
                headers={name: value for name, value in headers.items() if value},
                timeout=timeout,
                transport=transport,
                # Loading the trust store takes longer than a local call: only where TLS is spoken.
                verify=server_url.startswith("https:"),
                # A proxy from the environment cannot reach this machine's loopback.
                trust_env=urlsplit(server_url).hostname not in _LOOPBACK,
            )
        except (ValueError, UnicodeError) as error:  # a header or proxy that cannot be sent
            raise CliError(f"cannot set up the connection: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, **query: Any) -> Any:
        return self.call("GET", path, query=query)

    def post(self, path: str, body: Any) -> Any:
        return self.call("POST", path, body=body)

    def put(self, path: str, body: Any) -> Any:
        return self.call("PUT", path, body=body)

    def delete(self, path: str) -> Any:
        return self.call("DELETE", path)

    def call(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = ...
    ) -> Any:
        """Make one call and return the decoded answer (None for 204). Raises CliError."""
        return self.exchange(method, path, query=query, body=body)[0]

    def exchange(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = ...
    ) -> tuple[Any, httpx.Headers]:
        """As `call`, with the answer's headers. `body=...` sends none. Raises CliError."""
        response = self._patiently(method, lambda: self._once(method, path, query, body))
        return self._decode(response, method, path), response.headers

    def _patiently(
        self,
        method: str,
        send: Callable[[], httpx.Response],
        *,
        away: frozenset[int] = _AWAY,
        is_strange: Callable[[httpx.Response], bool] | None = None,
    ) -> httpx.Response:
        """Send; inside a task until the server has answered. Raises CliError.

        No answers are the states of `away`, and what `is_strange` takes for somebody else's.
        """
        is_strange = is_strange or _is_strangers
        waiting = _Waiting(self.server_url, self._patience)
        repeatable = method in _IDEMPOTENT
        while True:
            response: httpx.Response | None = None
            failure: CliError | None = None
            most = math.inf
            try:
                response = send()
                strange = bool(self._patience) and is_strange(response)
                waited_out = response.status_code in away and not _is_upstreams(response)
                if not (waited_out or strange):
                    return response
                not_done = response.status_code in _NOT_DONE
                not_done |= strange and 300 <= response.status_code < 500
                why = f"it answered {response.status_code}"
                if strange or response.status_code == 500:
                    most = _BUG
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure, not_done, why = self._unreachable(error, sent=False), True, "no connection"
            except httpx.TransportError as error:
                failure = self._unreachable(error, sent=not repeatable)
                not_done, why = False, "the connection broke"
            except (httpx.InvalidURL, httpx.DecodingError, httpx.TooManyRedirects) as error:
                raise CliError(f"{self.server_url} did not answer sensibly: {error}") from error
            if repeatable or not_done:
                again = waiting.pause(why, most)
            else:
                while not self._is_back() and waiting.pause(why, math.inf):
                    pass
                again = False
            if not again:
                if failure is not None:
                    raise failure
                assert response is not None
                return response

    def _is_back(self) -> bool:
        """Whether the server answers again; always for a person, who does not wait."""
        if not self._patience:
            return True
        try:
            return self._client.get(f"{self.server_url}/readyz").status_code < 500
        except httpx.TransportError:
            return False

    def upload(self, path: Path, **place: str) -> dict[str, Any]:
        """Send a file and return the attachment. `place` says what it is for. Raises CliError."""
        try:
            if path.stat().st_size > _BODY_LIMIT:
                raise CliError(f"{path} is larger than {_BODY_LIMIT // 2**20} MiB")
            data = path.read_bytes()
        except OSError as error:
            raise CliError(f"cannot read {path}: {error.strerror}") from error
        response = self._patiently(
            "POST",
            lambda: self._client.post(
                f"{self.server_url}/api/upload-file",
                data=place,
                files={"file": (path.name, data)},
            ),
        )
        made: dict[str, Any] = self._decode(response, "POST", "/api/upload-file")
        return made

    def download(self, url: str) -> bytes:
        """The bytes behind an address; ours with the token, another's without. Raises CliError."""
        ours = url.startswith("/")
        where = self.server_url + url if ours else url
        data = bytearray()

        def fetch() -> httpx.Response:
            data.clear()
            with client.stream("GET", where) as response:
                if response.status_code != 200:
                    response.read()
                    return response
                for chunk in response.iter_bytes():
                    data.extend(chunk)
                    if len(data) > _BODY_LIMIT:
                        raise CliError(f"the file is larger than {_BODY_LIMIT // 2**20} MiB")
                return response

        with httpx.Client(timeout=self._timeout, transport=self._transport) as elsewhere:
            client = self._client if ours else elsewhere
            # Who keeps files for the server says 401 and means it, and a file may be any page.
            response = self._patiently(
                "GET",
                fetch,
                away=_AWAY if ours else _AWAY - {401},
                is_strange=lambda got: ours and got.status_code != 200 and _is_strangers(got),
            )
        if response.status_code != 200:
            self._decode(response, "GET", url)
            raise CliError(f"unexpected answer (HTTP {response.status_code})")
        return bytes(data)

    def _once(
        self, method: str, path: str, query: Mapping[str, Any] | None, body: Any
    ) -> httpx.Response:
        params = {k: v for k, v in (query or {}).items() if v is not None and v != ""}
        url = self.server_url + path
        if body is ...:
            return self._client.request(method, url, params=params)
        # Not `json=`: that would send no body at all for `null` (spec 06 §1).
        return self._client.request(
            method,
            url,
            params=params,
            content=json.dumps(body),
            headers={"Content-Type": "application/json"},
        )

    def _unreachable(self, error: Exception, *, sent: bool) -> CliError:
        if isinstance(error, httpx.TimeoutException):
            text = f"{self.server_url} did not answer within {self._timeout:g} s"
        elif isinstance(error, httpx.ConnectError):
            text = f"cannot reach {self.server_url}; is the server running? (`bullpen up`)"
        else:
            text = f"the connection to {self.server_url} broke"
        if sent:
            text += "; the change may or may not have been made"
        return CliError(text, UNREACHABLE, detail=f"{type(error).__name__}: {error}")

    def _decode(self, response: httpx.Response, method: str, path: str) -> Any:
        status = response.status_code
        if 200 <= status < 300:
            if not response.content:
                return None
            try:
                return response.json(object_hook=_Told)
            except (ValueError, RecursionError) as error:
                raise CliError(
                    f"{self.server_url} did not answer with JSON; is it a Bullpen server?",
                    detail=f"{method} {path} -> {status}",
                ) from error
        raw = response.content[:_ERROR_LIMIT].decode("utf-8", "replace")
        try:
            decoded = response.json()
        except (ValueError, RecursionError):
            decoded = None
        body = decoded if isinstance(decoded, dict) else {}
        told = _told(body)
        third = body.get("code") == _UPSTREAM and bool(told)
        text, code = (told, USAGE) if third else explain(status, told)
        detail = f"{method} {path} -> {status} {raw}"
        raise Rejected(text, code, status=status, body=body, detail=detail)


def _is_strangers(response: httpx.Response) -> bool:
    """Whether somebody else answered in the server's place: a redirect, a page, a refusal without words.

    Not for 401 and 5xx, which are waited out whoever says them.
    """
    status = response.status_code
    if (
        status in _AWAY
        or status in _SIZE
        or status >= 500
        or (status < 300 and not response.content)
    ):
        return False
    if 300 <= status < 400:
        return True
    try:
        told = response.json()
    except (ValueError, RecursionError):
        return True
    return status >= 400 and not (isinstance(told, dict) and isinstance(told.get("error"), str))


def _is_upstreams(response: httpx.Response) -> bool:
    """Whether the server is well, and says that somebody it asked for us is not."""
    try:
        told = response.json() if response.status_code == 502 else None
    except (ValueError, RecursionError):
        return False
    return isinstance(told, dict) and told.get("code") == _UPSTREAM


class _Waiting:
    """The time one call may spend waiting; says on standard error what for. Changed by `pause`."""

    def __init__(self, server_url: str, patience: float) -> None:
        self._server_url = server_url
        self._began = time.monotonic()
        self._patience = patience
        self._wait = 0.25
        self._said = 0.0

    def pause(self, why: str, most: float) -> bool:
        """Wait a moment; False when the patience is at its end, or `most` seconds of it."""
        waited = time.monotonic() - self._began
        if waited + self._wait >= min(self._patience, most):
            return False
        if waited - self._said >= _PROGRESS:
            self._said = waited
            left = self._patience - waited
            print(
                f"bullpen: waiting for {self._server_url} since {waited:.0f} s ({why});"
                f" giving up in {left:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(self._wait)
        self._wait = min(self._wait * 2, _LONGEST_WAIT)
        return True


def _told(body: Mapping[str, Any]) -> str:
    for key in ("error", "message", "detail", "title"):
        value = body.get(key)
        if isinstance(value, str) and value.strip():
            return " ".join(value.split())
    return ""


def explain(status: int, told: str) -> tuple[str, int]:
    """The one line and the exit code for an error answer (spec 06 §20.2).

    The server's own words are shown wherever they help; never for 5xx.
    """
    if status in (400, 422):
        return told or "the server rejected the request", INVALID
    if status == 401:
        return "not signed in, or the token is no longer valid (`bullpen login`)", REFUSED
    if status == 403:
        return f"not allowed: {told}" if told else "not allowed", REFUSED
    if status == 404:
        return f"not found: {told}" if told and told != "not found" else "not found", ABSENT
    if status == 409:
        return told or "somebody or something else is in the way", USAGE
    if status == 413:
        return "too large for the server", USAGE
    if status == 429:
        return "the server asks to slow down; try again in a moment", USAGE
    if status >= 500:
        return f"the server had a problem (HTTP {status}); its log says more", USAGE
    return f"unexpected answer (HTTP {status})", USAGE


def open_api(settings: Settings, *, workspace: bool = True) -> Api:
    """An Api from the settings; `workspace=False` for calls that need none. Raises CliError."""
    return Api(
        settings.server_url(),
        settings.token(),
        workspace_id=settings.workspace_id() if workspace else settings.try_workspace_id(),
        agent_id=settings.agent_id,
        task_id=settings.task_id,
        timeout=settings.timeout,
        patience=settings.patience,
        transport=settings.transport,
    )


def segment(text: str) -> str:
    """Quote one path segment."""
    return quote(text, safe="")
