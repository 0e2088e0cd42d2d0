"""What is a secret and what only speaks of one; the same table on both sides."""

from __future__ import annotations

import io
import json
import time

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st

from shared import log
from shared.redact import Redactor, redact, redact_value

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    "text",
    [
        "API_KEY=os.environ['API_KEY']",
        "password = getpass()",
        "password = input('Your password: ')",
        "login(token: string)",
        "def f(token: str, password: str | None = None) -> None:",
        "interface A { token?: string; password: string | null }",
        "fn login(token: &str, secret: Option<String>)",
        "password: Optional[str] = None",
        "secret: true",
        "token: null",
        'API_KEY=""',
        "PASSWORD=",
        "self.password = password",
        "const token = process.env.TOKEN;",
        "connect(user=user, password=user_password, token=token)",
        "TOKEN=$TOKEN PASSWORD=${PASSWORD} SECRET=$(cat file)",
        "token: ${{ secrets.GITHUB_TOKEN }}",
        'token := os.Getenv("TOKEN")',
        "let token = Token::new(x)",
        "if token == expected:",
        'if token == "def" and',
        "token = Name.Builtin",
        "token = tokens[0]",
        "token = await run(task)",
        'def describe(token: "Token") -> str:',
        "private_key: Ed25519PrivateKey | Ed448PrivateKey",
        'f"token={record.token} password={password!r}"',
        ":param password: The password to use",
        "<label>Password:</label>",
        '{"token": "string", "secret": {"type": "object"}}',
        '"token": "The token to sign in with"',
        "password: *****",
        "sk-learn-intro-2024-edition-final-version-long",
        "Bearer authentication is required",
        "tokens: 5 were used; token: 5",
        "invalid token: expired",
        "redis://localhost:6379/0 and postgres://host/db",
        # what we log ourselves
        "the server refuses the token: run `bullpen login`",
        "server did not provide task-scoped auth token",
        "MY_TOKEN=[REDACTED CREDENTIAL]",
        "the [REDACTED TOKEN]: hello",
    ],
)
def test_code_and_prose_stay(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("PASSWORD=hunter2,extra;more", "hunter2,extra;more"),
        ("PASSWORD=hunter2,extra;more", "more"),
        ("PASSWORD=swordfish", "swordfish"),
        ("PASSWORD=correct.horse.battery", "battery"),
        ("PASSWORD=mysecretword", "mysecretword"),
        ("PASSWORD=abc123(xyz", "xyz"),
        ("PASSWORD=[REDACTED]hunter2", "hunter2"),
        ("PASSWORD=[REDACTED hunter2", "hunter2"),
        ("PASSWORD=[REDACTEDhunter2", "hunter2"),
        ("PASSWORD=[REDACTED TOKEN][REDACTED]x9", "x9"),
        ("password: swordfish", "swordfish"),
        ("password = swordfish", "swordfish"),
        ("secret = swordfish", "swordfish"),
        ('if password == "swordfish":', "swordfish"),
        ('password: "correct horse battery staple"', "battery"),
        ("DB_PASSWORD='correct horse battery'", "battery"),
        ("password: hunter2 and more", "hunter2"),
        ('password = "hunter2 with spaces"', "spaces"),
        ("{'token': 'abc12345'}", "abc12345"),
        ('{"password": "hunter2", "user": "ada"}', "hunter2"),
        (r"{\"password\": \"hunter2\"}", "hunter2"),
        ("os.environ['TOKEN'] = 'abcd1234'", "abcd1234"),
        ('if token == "s3cr3t":', "s3cr3t"),
        ('token: str = "abcd1234"', "abcd1234"),
        ("token = get(password='hunter2')", "hunter2"),
        ("x-api-key: abc123def", "abc123def"),
        ("apiKey: 'abc123def'", "abc123def"),
        ("\u0130 PASSWORD=hunter2", "hunter2"),
        ("sk_live_abcdefghijklmnop", "abcdefghijklmnop"),
        ("rk_test_abcdefghijklmnop", "abcdefghijklmnop"),
        ("sk-proj-Ab3_defghijklmnop0123-xyz", "xyz"),
        ("xapp-1-A111-222-abcdef", "abcdef"),
        ("xoxe-1-abcdefghij", "abcdefghij"),
        ("xoxe.xoxp-1-abcdefghij", "abcdefghij"),
        ("Authorization: Bearer abcdefgh12345", "abcdefgh12345"),
        ("Authorization: Basic dXNlcjpwdw==", "dXNlcjpwdw"),
        ("redis://:pw12@host/0", "pw12"),
        ("mongodb+srv://ada:pw12@host/db", "pw12"),
        ("DATABASE_URL=postgres://u:pw77@h/db", "pw77"),
        ("npm_" + "a1" * 18, "a1a1"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nabc", "abc"),
    ],
)
def test_secrets_go_whole(text: str, secret: str) -> None:
    cleaned = redact(text)
    assert secret not in cleaned
    assert "[REDACTED" in cleaned


def test_a_secret_whose_beginning_is_another_goes_whole() -> None:
    for secrets in (["hunter2", "hunter2-and-more"], ["hunter2-and-more", "hunter2"]):
        assert Redactor(secrets).text("it is hunter2-and-more.") == "it is [REDACTED]."


def test_secrets_that_overlap_go_whole() -> None:
    assert Redactor(["abcdef", "defghi", "fgh"]).text("<abcdefghi>") == "<[REDACTED]>"
    assert Redactor(["abcabc"]).text("<abcabcabc>") == "<[REDACTED]>"
    assert Redactor(["abcabc"]).text("<abcabcabcabc>").count("abc") == 0


@given(
    st.lists(st.text(alphabet="ab-", min_size=6, max_size=12), min_size=1, max_size=4),
    st.lists(st.integers(0, 3), max_size=6),
)
def test_no_known_value_is_left_anywhere(secrets: list[str], order: list[int]) -> None:
    text = " ".join(secrets[place % len(secrets)] for place in order)
    cleaned = Redactor(secrets).text(text)
    assert not any(secret in cleaned for secret in secrets)
    assert set(cleaned) <= set("[REDACTED] ab-")


def test_a_known_value_is_found_in_json_and_line_by_line() -> None:
    key = 'first "line" of the key\nsecond line of the key\n'
    redactor = Redactor([key])
    assert "line of the key" not in redactor.text(json.dumps({"x": key}))
    assert "line of the key" not in redactor.text("> second line of the key")


def test_values_and_keys_of_json_are_redacted_at_any_depth() -> None:
    secret = "hunter2hunter2"
    value = {"a": [{secret: (secret, 5, None)}], "b": {"c": f"PASSWORD={secret}"}}
    assert secret not in json.dumps(Redactor([secret]).value(value))
    assert redact_value({"a": 5}) == {"a": 5}


@given(st.text(alphabet="PASWORDtokensecret_-=: \"'[]{}()$.,abc123\n", max_size=60))
@example("token=[REDACTED token=x")
def test_what_is_redacted_stays_as_it_is(text: str) -> None:
    once = redact(text)
    assert redact(redact(once)) == redact(once)


HOSTILE = [
    "-ey" + "a" * 12,
    "eyaaaaaaaaaa.",
    "redis://a:",
    "postgres://",
    "token=",
    "token=${",
    "token: ",
    'token="',
    "token='\\",
    "PASSWORD=[REDACTED]",
    "[REDACTED",
    "token" + " " * 7,
    "-----BEGIN A",
    "-----BEGIN PRIVATE KEY-----",
    "-----END",
    "Bearer ",
    "bearer a.",
    "sk-a-",
    "sk-" + "a" * 15,
    "xoxb-",
    "x_secret_access_key = ",
    "ghp_a",
    "mul_",
    "token: a|",
    "token:str = ",
    "a.b.",
    "\u0130token=x",
]


@pytest.mark.parametrize("piece", HOSTILE)
@pytest.mark.parametrize("gap", ["", " "])
def test_the_time_grows_with_the_text(piece: str, gap: str) -> None:
    """Sixteen times the text takes nowhere near 256 times the processor's time."""

    def spent(copies: int) -> float:
        text = (piece + gap) * copies
        best = float("inf")
        for _ in range(2):
            began = time.thread_time()
            redact(text)
            best = min(best, time.thread_time() - began)
        return best

    copies = 4_000 // len(piece)
    assert spent(16 * copies) < 80 * max(spent(copies), 0.0002)


def test_the_log_knows_a_tasks_secrets_at_any_depth() -> None:
    out = io.StringIO()
    log.set_up("info", out)
    try:
        logger = structlog.get_logger()
        with log.hiding(Redactor(["hunter2hunter2"])):
            logger.info("agent stderr", line="it is hunter2hunter2", more={"a": ["hunter2hunter2"]})
            logger.info("failed", error=ValueError("hunter2hunter2"), count=5)
        endless: list[object] = []
        endless.append(endless)
        logger.info("outside", line="hunter2hunter2", more=["PASSWORD=abc12345"], deep=endless)
    finally:
        structlog.reset_defaults()
    first, second, third = map(json.loads, out.getvalue().splitlines())
    assert "hunter2" not in json.dumps([first, second])
    assert second["count"] == 5
    assert third["line"] == "hunter2hunter2"
    assert "abc12345" not in json.dumps(third)
