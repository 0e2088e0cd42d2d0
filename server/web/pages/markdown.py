"""Markdown (`server.markdown`) rendered to HTML that is safe to show. Pure.

Raw HTML stays text, and links that lead away say so to the browser (noopener, nofollow). Pictures
become links to themselves: the page loads nothing from elsewhere. Bare addresses and identifiers of
this workspace become links too, because agents write them that way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markupsafe import Markup, escape

from server.markdown import COMMENT, LIMIT, make_parser, target_of

_ADDRESS: Final = re.compile(r"https?://[^\s<>\"'`]+")
_IDENTIFIER: Final = re.compile(r"(?<![\w/-])[A-Z][A-Z0-9]{0,9}-\d{1,9}(?![\w-])")


@lru_cache(maxsize=512)
def render(text: str, slug: str = "", prefix: str = "") -> Markup:
    """Render `text` for the workspace `slug`, whose issues are called `<prefix>-<number>`."""
    shown = Markup(_parser.render(text[:LIMIT], {"slug": slug, "prefix": prefix}))  # noqa: S704
    rest = text[LIMIT:]
    return shown + Markup('<pre class="raw">{}</pre>').format(rest) if rest else shown


def _links(state: StateCore) -> None:
    for block in state.tokens:
        if block.type == "inline" and block.children:
            block.children = list(_inline(block.children, state.env))


def _inline(tokens: list[Token], env: Any) -> Iterator[Token]:
    closing: list[str] = []
    for token in tokens:
        if token.type == "link_open":
            tag = _dress(token, env)
            closing.append(tag)
            yield token
        elif token.type == "link_close":
            token.tag = closing.pop() if closing else "a"
            yield token
        elif token.type == "image":
            source = str(token.attrs.get("src", ""))
            yield from _link(source, token.content or source, env)
        elif token.type == "text" and not closing:
            yield from _split(token.content, env)
        else:
            yield token


def _dress(token: Token, env: Any) -> str:
    """Give a link its attributes; the tag it ends with."""
    target = str(token.attrs.get("href", ""))
    mention = target_of(target)
    if mention is not None:
        kind, key = mention
        if kind == "issue" and env["slug"]:
            token.attrs = {"href": f"/{env['slug']}/issues/{key}", "class": "mention"}
            return "a"
        token.tag = "span"
        token.attrs = {"class": "mention"}
        return "span"
    if not target.startswith(("/", "#")):
        token.attrs["rel"] = "noopener nofollow"
        token.attrs["target"] = "_blank"
    return "a"


def _link(target: str, label: str, env: Any) -> Iterator[Token]:
    opening = Token("link_open", "a", 1, attrs={"href": target})
    _dress(opening, env)
    yield opening
    yield _text(label)
    yield Token("link_close", opening.tag, -1)


def _text(content: str) -> Token:
    return Token("text", "", 0, content=content)


def _split(content: str, env: Any) -> Iterator[Token]:
    """Cut a run of text at what should be a link."""
    end = 0
    prefix = env["prefix"]
    found = [(m.start(), m.group(), True) for m in _ADDRESS.finditer(content)]
    if prefix and env["slug"]:
        found += [
            (m.start(), m.group(), False)
            for m in _IDENTIFIER.finditer(content)
            if m.group().startswith(f"{prefix}-")
        ]
    for start, match, is_address in sorted(found):
        if start < end:
            continue
        label = _trim(match) if is_address else match
        if start > end:
            yield _text(content[end:start])
        target = _parser.normalizeLink(label) if is_address else f"/{env['slug']}/issues/{label}"
        yield from _link(target, label, env)
        end = start + len(label)
    if end < len(content):
        yield _text(content[end:])


def _trim(address: str) -> str:
    """Leave out the punctuation of the sentence an address stands in."""
    while address and (
        address[-1] in ".,;:!?*_~"
        or (address[-1] == ")" and address.count("(") < address.count(")"))
    ):
        address = address[:-1]
    return address


def _fence(code: str) -> str:
    return f"<pre><code>{escape(code)}</code></pre>\n"


def _comment(token: Token) -> str:
    shown = str(escape(token.content)).replace("\n", "<br>\n")
    return f"<p>{shown}</p>\n" if token.block else shown


def _make() -> MarkdownIt:
    parser = make_parser()
    parser.core.ruler.after("inline", "bullpen_links", _links)
    parser.add_render_rule("fence", lambda _, tokens, at, *__: _fence(tokens[at].content))
    parser.add_render_rule(COMMENT, lambda _, tokens, at, *__: _comment(tokens[at]))
    parser.add_render_rule("table_open", lambda *_: '<div class="table"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return parser


_parser = _make()
