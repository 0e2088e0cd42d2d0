"""What is known of each program's models, and how to read what the programs tell of theirs. ◇

Lists age: a program that can tell its models is asked (`models_discovery`), and what stands here is
for the others and for when it cannot be asked (spec 04 §1.12 and each provider's "Models").
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from shared.codec import omitted


@attrs.frozen(kw_only=True)
class Level:
    """One degree of thinking; `value` is what the program takes."""

    value: str
    label: str
    description: str = omitted("")


@attrs.frozen(kw_only=True)
class Thinking:
    supported_levels: list[Level]
    default_level: str = omitted("")


@attrs.frozen(kw_only=True)
class Model:
    """A model as it travels (spec 01 §3.17). `default` is a hint for showing it."""

    id: str
    label: str
    provider: str = omitted("")
    default: bool = omitted(False)
    thinking: Thinking | None = omitted(None)


class UnreadableCatalogue(ValueError):
    """The program's answer is no list of models."""


# -- what stands here because the program cannot be asked

_CLAUDE: Final = (
    "claude-sonnet-4-6",
    "claude-fable-5",
    "claude-opus-5",
    "claude-sonnet-5",
    "claude-opus-4-8",
    "claude-opus-4-7",
    "claude-haiku-4-5-20251001",
    "claude-opus-4-6",
    "claude-sonnet-4-5",
)
_CODEX: Final = (
    "gpt-5.5",
    "gpt-5.5-mini",
    "gpt-5.4",
    "gpt-5.4-mini",
    "gpt-5.3-codex",
    "gpt-5",
    "o3",
    "o3-mini",
)
_COPILOT: Final = (
    "gpt-5.5",
    "gpt-5.4",
    "gpt-5.4-mini",
    "gpt-5.3-codex",
    "gpt-5.2-codex",
    "gpt-5.2",
    "gpt-5-mini",
    "gpt-4.1",
    "claude-opus-4.7",
    "claude-sonnet-4.6",
    "claude-sonnet-4.5",
    "claude-haiku-4.5",
)
_LABELS: Final = {
    "none": "None",
    "off": "Off",
    "minimal": "Minimal",
    "low": "Low",
    "medium": "Medium",
    "high": "High",
    "xhigh": "Extra high",
    "max": "Max",
    "ultra": "Ultra",
}
_CLAUDE_LEVELS: Final = ("low", "medium", "high", "xhigh", "max")
PLAIN_LEVELS: Final = ("low", "medium", "high")


def claude_models(levels: Sequence[str] | None) -> list[Model]:
    """Claude's models. `levels` is what its help offers after `--effort`; None: no such flag."""
    return [
        Model(
            id=name,
            label=_title(name),
            provider="anthropic",
            default=number == 0,
            thinking=_claude_thinking(name, levels),
        )
        for number, name in enumerate(_CLAUDE)
    ]


def _claude_thinking(model: str, levels: Sequence[str] | None) -> Thinking | None:
    name = model.removesuffix("[1m]")
    able: Sequence[str] = _CLAUDE_LEVELS
    if "-sonnet-" in name:
        able = [level for level in _CLAUDE_LEVELS if level != "xhigh"]
    elif "-haiku-" in name:
        able = PLAIN_LEVELS
    return thinking_of(
        [level for level in levels if level in able or level not in _CLAUDE_LEVELS]
        if levels is not None
        else (),
        default="medium",
    )


def codex_models() -> list[Model]:
    return _static(_CODEX, "openai")


def copilot_models() -> list[Model]:
    return _static(_COPILOT, None)


def cursor_models() -> list[Model]:
    return [Model(id="auto", label="Auto", default=True)]


def _static(names: Iterable[str], vendor: str | None) -> list[Model]:
    return [
        Model(
            id=name,
            label=_title(name),
            provider=vendor_of(name) if vendor is None else vendor,
            default=number == 0,
        )
        for number, name in enumerate(names)
    ]


def thinking_of(levels: Iterable[str], *, default: str = "") -> Thinking | None:
    """Build a catalogue of levels; None when there are none."""
    listed = [Level(value=value, label=label_of(value)) for value in dict.fromkeys(levels)]
    if not listed:
        return None
    known = default in {level.value for level in listed}
    return Thinking(supported_levels=listed, default_level=default if known else "")


def label_of(level: str) -> str:
    return _LABELS.get(level, level.replace("-", " ").replace("_", " ").capitalize())


def vendor_of(model: str) -> str:
    """Guess who makes a model from its id; "" if it does not say."""
    name = model.lower()
    if name.startswith("claude"):
        return "anthropic"
    if name.startswith(("gpt-", "codex")) or re.match(r"o\d(?:-|$)", name):
        return "openai"
    if name.startswith("gemini"):
        return "google"
    if name.startswith("grok"):
        return "xai"
    return ""


def _title(name: str) -> str:
    """`claude-opus-4-8` → `Claude Opus 4.8`; OpenAI's short names stay recognisable."""
    bare = re.sub(r"-\d{8}$", "", name)
    if not bare.startswith("claude"):
        return bare.replace("gpt-", "GPT-", 1) if bare.startswith("gpt-") else bare
    bare = re.sub(r"(\d+)-(\d+)$", r"\1.\2", bare)
    return " ".join(word.capitalize() for word in bare.split("-"))


def is_valid_level(models: Sequence[Model], model: str, level: str) -> bool:
    """Whether a model takes a level of thinking; no model means the default one (spec 03 §27).

    Where no default is known, a level that any model offers will do.
    """
    if not level:
        return True
    name = model.removesuffix("[1m]")
    chosen = [one for one in models if (one.id == name if name else one.default)]
    if not chosen and not name:
        chosen = list(models)
    return any(
        level == offered.value
        for one in chosen
        if one.thinking is not None
        for offered in one.thinking.supported_levels
    )


# -- what the programs tell


def read_claude_help(text: str) -> list[str] | None:
    """The levels after `--effort` in `claude --help`; None if there is no such flag."""
    found = re.search(r"--effort\b(.*?)(?:\n\s*-|\Z)", text, re.DOTALL)
    if found is None:
        return None
    listed = re.search(r"\(([^()]*,[^()]*)\)", found[1])
    if listed is None:
        return list(PLAIN_LEVELS)
    words = [re.sub(r"\s+", " ", word).strip(" \"'`") for word in listed[1].split(",")]
    return [word for word in words if re.fullmatch(r"[a-z][a-z0-9_-]*", word)] or [*PLAIN_LEVELS]


def read_codebuddy_help(text: str) -> list[Model]:
    """The models and levels of `codebuddy --help`; the first is the default."""
    found = re.search(r"Currently supported:\s*\(([^)]*)\)", text)
    names = [name.strip() for name in found[1].split(",") if name.strip()] if found else []
    efforts = read_claude_help(text)
    able = [level for level in efforts or () if level in ("low", "medium", "high", "xhigh")]
    return [
        Model(
            id=name,
            label=name,
            provider=vendor_of(name),
            default=number == 0,
            thinking=thinking_of(able, default="medium"),
        )
        for number, name in enumerate(names)
    ]


def read_codex_catalogue(text: str, base: Sequence[Model]) -> list[Model]:
    """`codex debug models`: annotates the models known here and adds those that are not."""
    told: dict[str, Model] = {}
    for row in _rows(_json_of(text), "models"):
        slug = _word(row, "slug")
        if not slug or _word(row, "visibility") == "hide":
            continue
        efforts = [
            Level(value=value, label=label_of(value), description=_word(effort, "description"))
            for effort in _rows(row, "supported_reasoning_levels")
            if (value := _word(effort, "effort"))
        ]
        default = _word(row, "default_reasoning_level")
        told[slug] = Model(
            id=slug,
            label=_word(row, "display_name") or _title(slug),
            provider="openai",
            thinking=Thinking(
                supported_levels=efforts,
                default_level=default if default in {e.value for e in efforts} else "",
            )
            if efforts
            else None,
        )
    if not told:
        raise UnreadableCatalogue("no models in it")
    known = [
        attrs.evolve(model, thinking=told.pop(model.id).thinking) if model.id in told else model
        for model in base
    ]
    return known + list(told.values())


def read_opencode_models(text: str) -> list[Model]:
    """`opencode models --verbose`: an id line, then the model as JSON; or ids alone."""
    found: list[Model] = []
    decoder = json.JSONDecoder()
    rest = text
    while rest := rest.lstrip():
        line, _, rest = rest.partition("\n")
        name = line.strip()
        if not re.fullmatch(r"[^\s/{}\"]+/\S+", name):
            continue
        details: Any = {}
        if rest.lstrip().startswith("{"):
            body = rest.lstrip()
            try:
                details, end = decoder.raw_decode(body)
                rest = body[end:]
            except ValueError:
                details = {}
        details = details if isinstance(details, dict) else {}
        found.append(
            Model(
                id=name,
                label=_word(details, "name") or name,
                provider=name.partition("/")[0],
                thinking=_opencode_thinking(details),
            )
        )
    return found


def _opencode_thinking(details: Mapping[str, Any]) -> Thinking | None:
    variants = details.get("variants")
    names = [name for name in variants if name] if isinstance(variants, dict) else []
    capabilities = details.get("capabilities")
    able = details.get("reasoning") is True or (
        isinstance(capabilities, dict) and capabilities.get("reasoning") is True
    )
    return thinking_of(names) if able or set(names) & _LABELS.keys() else None


_PI_NOISE: Final = re.compile(
    r"^(?:warning:|no models|usage|error|provider\s+model\b)", re.IGNORECASE
)


def read_pi_models(text: str) -> list[Model]:
    """`pi --list-models`: a table of provider and model, or `provider:model` lines."""
    found: dict[str, Model] = {}
    for line in text.splitlines():
        line = line.strip()  # noqa: PLW2901
        if not line or _PI_NOISE.match(line):
            continue
        columns = line.split()
        vendor, colon, name = columns[0].partition(":")
        if not colon:
            if len(columns) < 2:
                continue
            vendor, name = columns[0], columns[1]
        if not (re.fullmatch(r"[\w.-]+", vendor) and re.fullmatch(r"[\w./:@-]+", name)):
            continue
        key = f"{vendor}/{name}"
        found.setdefault(key, Model(id=key, label=name, provider=vendor))
    return list(found.values())


def read_openclaw_agents(text: str) -> list[Model]:
    """`openclaw agents list --json`: its "models" are agents."""
    value = _json_of(text)
    rows = value if isinstance(value, list) else _rows(value, "agents")
    found: dict[str, Model] = {}
    for row in rows:
        if isinstance(row, dict) and (key := _word(row, "id") or _word(row, "name")):
            label = _word(row, "name") or key
            found.setdefault(key, Model(id=key, label=label, default=row.get("default") is True))
    return list(found.values())


def read_antigravity_models(text: str) -> list[Model]:
    """`agy models`: a display name per line, or since 1.1.11 `id<TAB>label`."""
    found: dict[str, Model] = {}
    for line in text.splitlines():
        key, tab, label = line.strip().partition("\t")
        if key:
            found.setdefault(key, Model(id=key, label=label.strip() if tab else key))
    return list(found.values())


_CURSOR_ROW: Final = re.compile(r"^(\S+) - (.+?)(?:\s+\(([^()]*)\))?$")


def read_cursor_models(text: str) -> list[Model]:
    """`cursor-agent --list-models`: rows `id - Label (current, default)`."""
    found: dict[str, Model] = {}
    for line in text.splitlines():
        if row := _CURSOR_ROW.match(line.strip()):
            marks = {mark.strip() for mark in (row[3] or "").split(",")}
            label = (
                row[2] if marks & {"current", "default"} or not row[3] else f"{row[2]} ({row[3]})"
            )
            found.setdefault(row[1], Model(id=row[1], label=label, default="default" in marks))
    return list(found.values())


def read_acp_session(session: Any) -> list[Model]:
    """The models an ACP agent offers when a session is opened (spec 04 §3.7)."""
    if not isinstance(session, dict):
        return []
    models = session.get("models")
    if isinstance(models, dict):
        current = _word(models, "currentModelId") or _word(models, "current_model_id")
        listed = _rows(models, "availableModels") or _rows(models, "available_models")
        pairs = [
            (_word(row, "modelId") or _word(row, "model_id") or _word(row, "id"), row)
            for row in listed
        ]
        if found := _acp_models(pairs, current):
            return found
    for option in _rows(session, "configOptions") or _rows(session, "config_options"):
        if "model" in (_word(option, "id"), _word(option, "category")):
            current = _word(option, "currentValue") or _word(option, "current_value")
            pairs = [(_word(row, "value"), row) for row in _choices(option)]
            return _acp_models(pairs, current)
    return []


def _choices(option: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """An option's choices, whether or not they are grouped."""
    for row in _rows(option, "options"):
        grouped = _rows(row, "options")
        yield from grouped or [row]


def _acp_models(pairs: Iterable[tuple[str, Mapping[str, Any]]], current: str) -> list[Model]:
    found: dict[str, Model] = {}
    for key, row in pairs:
        if key:
            vendor = key.partition("/")[0] if "/" in key else vendor_of(key)
            model = Model(
                id=key, label=_word(row, "name") or key, provider=vendor, default=key == current
            )
            found.setdefault(key, model)
    return list(found.values())


def _json_of(text: str) -> Any:
    """The first JSON object or array in an output that may begin with a banner."""
    for start in re.finditer(r"^\s*[{\[]", text, re.MULTILINE):
        try:
            return json.JSONDecoder().raw_decode(text[start.end() - 1 :])[0]
        except ValueError:
            continue
    raise UnreadableCatalogue("no JSON in it")


def _rows(value: Any, key: str) -> list[dict[str, Any]]:
    listed = value.get(key) if isinstance(value, dict) else None
    return [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []


def _word(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return value.strip() if isinstance(value, str) else ""
