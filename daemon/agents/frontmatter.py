"""The block of YAML a SKILL.md begins with: what it says, and that it says anything. ◇

Skills were written for other programs. Those that find broken YAML there do not load the skill at
all, without a word; so what would break them is dropped and written anew.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import yaml

_OPENING: Final = re.compile(r"---[ \t]*\r?\n")
_CLOSING: Final = re.compile(r"^---[ \t]*\r?$\n?", re.MULTILINE)
_EMPTY_NAME: Final = re.compile(r"^name:[ \t]*(?:#.*)?(?:\"\"|'')?[ \t]*\r?(?:\n|\Z)", re.MULTILINE)
_NULL: Final = "tag:yaml.org,2002:null"


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which let a few lines stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read here")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def described(text: str) -> tuple[str, str]:
    """Return the name and description a SKILL.md gives itself; both empty if it is unreadable.

    Scalars are taken as written, null is nothing, a structure is its JSON (spec 03 §26).
    """
    opening = _OPENING.match(text)
    closing = _CLOSING.search(text, opening.end()) if opening is not None else None
    if opening is None or closing is None:
        return "", ""
    try:
        found = _entries(text[opening.end() : closing.start()])
        return _text_of(found.get("name")), _text_of(found.get("description"))
    except (yaml.YAMLError, ValueError, RecursionError):
        return "", ""


def with_frontmatter(text: str, *, name: str, description: str) -> str:
    """Return a skill's text with a block that is YAML and at least names it (spec 05 §4).

    `name` is its directory's. A block that has a name and can be read stays as it is.
    """
    opening = _OPENING.match(text)
    closing = _CLOSING.search(text, opening.end()) if opening is not None else None
    if opening is None or closing is None:
        return _block(name, description) + text
    block = text[opening.end() : closing.start()]
    try:
        named = _text_of(_entries(block).get("name"))
    except (yaml.YAMLError, ValueError, RecursionError):
        return _block(name, description) + text[closing.end() :].lstrip("\r\n")
    if named.strip():
        return text
    end = "\r\n" if opening[0].endswith("\r\n") else "\n"
    rest = _EMPTY_NAME.sub("", block)
    return f"{opening[0]}name: {name}{end}{rest}{text[closing.start() :]}"


def _entries(block: str) -> dict[str, yaml.Node]:
    """The entries of a block that is one mapping, by their keys. Raises yaml.YAMLError."""
    loader = _Loader(block)
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise yaml.YAMLError("not a mapping")
        loader.construct_document(root)  # values can be wrong on their own
        return {str(key.value): value for key, value in root.value}
    finally:
        loader.dispose()


def _text_of(node: yaml.Node | None) -> str:
    if node is None or node.tag == _NULL:
        return ""
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    value = yaml.safe_load(yaml.serialize(node))
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def _block(name: str, description: str) -> str:
    lines = [f"name: {name}"]
    if description.strip():
        lines.append(
            f"description: {json.dumps(' '.join(description.split()), ensure_ascii=False)}"
        )
    return "---\n" + "\n".join(lines) + "\n---\n\n"
