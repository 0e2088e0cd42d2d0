"""Markdown as people and agents write it: the one way it is parsed, and the mentions it holds. Pure.

What acts is what is rendered: the pages and the rules read the same tokens, so a mention in code, in
an HTML comment or behind a backslash is shown as text and starts nobody. Raw HTML stays text; only
http, https, mailto, mentions and our own paths become links.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import attrs
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from shared.ids import canonical_id, is_id

LIMIT: Final = 64 * 1024
"""Characters that are parsed, which happens between other requests. What lies behind is shown as it
is written, and mentions nobody."""

COMMENT: Final = "html_comment"
"""The kind of a token, of a block or a line, that holds an HTML comment as it is written."""

_SAFE: Final = re.compile(r"(?:https?://|mailto:|mention://|/(?!/)|#)", re.IGNORECASE)
_TARGET: Final = re.compile(r"mention://(member|agent|squad|issue|all)/([0-9a-fA-F-]+|all)")
_SPECIAL: Final = re.compile(r"([\\\[\]<>`])")


@attrs.frozen
class Mention:
    """A mention: `kind` is member, agent, squad, issue or all."""

    kind: str
    id: str


def target_of(address: str) -> tuple[str, str] | None:
    """Return the kind and the id that a link's address mentions, as they are written."""
    found = _TARGET.fullmatch(address)
    return None if found is None else (found[1], found[2])


def mentions_in(text: str) -> list[Mention]:
    """The mentions of a text, each once, in order; malformed ids are no mentions."""
    # an entity can stand for any character of the word
    if "mention" not in text and "&#" not in text:
        return []
    return list(_mentions(text[:LIMIT]))


@lru_cache(maxsize=64)
def _mentions(text: str) -> tuple[Mention, ...]:
    found: dict[Mention, None] = {}
    for address in _addresses(_parser.parse(text)):
        kind, ref = target_of(address) or ("", "")
        if kind == "all" or ref == "all":
            found[Mention("all", "all")] = None
        elif kind and is_id(ref):
            found[Mention(kind, canonical_id(ref))] = None
    return tuple(found)


def _addresses(tokens: list[Token]) -> Iterator[str]:
    for block in tokens:
        for token in block.children or ():
            if token.type == "link_open":
                yield str(token.attrs.get("href", ""))
            elif token.type == "image":  # rendered as a link
                yield str(token.attrs.get("src", ""))


def mention(kind: str, ref: str, name: str) -> str:
    """Write a mention of somebody called `name`, whatever is in it."""
    shown = _SPECIAL.sub(r"\\\1", name)
    return f"[@{shown}](mention://{kind}/{ref})"


def as_text(text: str) -> str:
    """Return a line in which nothing is a mention, to be put into other Markdown."""
    return text.replace("mention://", "mention-stripped://").replace("](", "] (")


def make_parser() -> MarkdownIt:
    """Build the parser that everybody uses; the pages add how they show what it finds."""
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True})
    parser.enable(["table", "strikethrough"])
    parser.validateLink = lambda url: _SAFE.match(url.strip()) is not None  # type: ignore[method-assign]
    parser.block.ruler.before(
        "heading", COMMENT, _comment_block, {"alt": ["paragraph", "reference", "blockquote"]}
    )
    parser.inline.ruler.before("link", COMMENT, _comment_inline)
    return parser


def _comment_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A comment that begins a line: up to the line with its end, or else to the end of all."""
    if state.is_code_block(start):
        return False
    begin = state.bMarks[start] + state.tShift[start]
    if not state.src.startswith("<!--", begin):
        return False
    if silent:
        return True
    line = start
    while line < end and (line == start or state.sCount[line] >= state.blkIndent):
        first = begin + 4 if line == start else state.bMarks[line]
        line += 1
        if "-->" in state.src[first : state.eMarks[line - 1]]:
            break
    state.line = line
    token = state.push(COMMENT, "", 0)
    token.map = [start, line]
    token.content = state.getLines(start, line, state.blkIndent, keepLastLF=False)
    return True


def _comment_inline(state: StateInline, silent: bool) -> bool:
    """A comment within a line or paragraph; one without an end is text."""
    if not state.src.startswith("<!--", state.pos):
        return False
    close = state.src.find("-->", state.pos + 4)
    if close < 0:
        return False
    if not silent:
        token = state.push(COMMENT, "", 0)
        token.content = state.src[state.pos : close + 3]
    state.pos = close + 3
    return True


_parser: Final = make_parser()
