"""What programs tell of their models, as they were seen telling it or are documented to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daemon.agents import models_catalogue as catalogue
from daemon.agents.models_catalogue import Model, UnreadableCatalogue, is_valid_level
from shared import codec

pytestmark = pytest.mark.fast

CLAUDE_HELP = """\
Usage: claude [options] [command] [prompt]

Options:
  --disallowedTools <tools...>          Comma or space-separated list (e.g. "Bash(git *) Edit")
  --effort <level>                      Effort level for the current session
                                        (low, medium, high, xhigh, max)
  --fallback-model <model>              Enable automatic fallback (only with --print)
"""


def _levels(model: Model) -> list[str]:
    return [level.value for level in model.thinking.supported_levels] if model.thinking else []


def _by_id(models: list[Model]) -> dict[str, Model]:
    return {model.id: model for model in models}


def test_claude_offers_what_its_help_and_each_model_allow() -> None:
    levels = catalogue.read_claude_help(CLAUDE_HELP)
    models = _by_id(catalogue.claude_models(levels))
    assert _levels(models["claude-opus-4-8"]) == ["low", "medium", "high", "xhigh", "max"]
    assert _levels(models["claude-sonnet-4-6"]) == ["low", "medium", "high", "max"]
    assert _levels(models["claude-haiku-4-5-20251001"]) == ["low", "medium", "high"]
    assert _levels(models["claude-fable-5"]) == ["low", "medium", "high", "xhigh", "max"]
    assert [key for key, model in models.items() if model.default] == ["claude-sonnet-4-6"]
    assert codec.unstructure(models["claude-haiku-4-5-20251001"]) == {
        "id": "claude-haiku-4-5-20251001",
        "label": "Claude Haiku 4.5",
        "provider": "anthropic",
        "thinking": {
            "supported_levels": [
                {"value": "low", "label": "Low"},
                {"value": "medium", "label": "Medium"},
                {"value": "high", "label": "High"},
            ],
            "default_level": "medium",
        },
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CLAUDE_HELP, ["low", "medium", "high", "xhigh", "max"]),
        ("  --effort <level>   How hard to think\n  --model (a, b)", ["low", "medium", "high"]),
        ("  --effort <level>   (low, medium)", ["low", "medium"]),
        ("  --model <m>   (a, b)", None),
        ("", None),
    ],
)
def test_levels_in_a_help(text: str, expected: list[str] | None) -> None:
    assert catalogue.read_claude_help(text) == expected


def test_a_claude_without_the_flag_offers_no_levels() -> None:
    assert not any(model.thinking for model in catalogue.claude_models(None))


def test_codex_annotates_what_is_known_and_adds_what_is_not() -> None:
    told = {
        "models": [
            {
                "slug": "gpt-5.5",
                "display_name": "GPT 5.5 (told)",
                "visibility": "list",
                "default_reasoning_level": "medium",
                "supported_reasoning_levels": [
                    {"effort": "low", "description": "Fast"},
                    {"effort": "medium", "description": ""},
                    {"effort": "ultra"},
                ],
            },
            {"slug": "gpt-9", "display_name": "GPT-9", "visibility": "list"},
            {"slug": "secret", "visibility": "hide"},
            "nonsense",
            {},
        ]
    }
    models = catalogue.read_codex_catalogue(
        "warning\n" + json.dumps(told), catalogue.codex_models()
    )
    first, last = models[0], models[-1]
    assert (first.id, first.label, first.default) == ("gpt-5.5", "GPT-5.5", True)
    assert first.thinking is not None
    assert codec.unstructure(first.thinking) == {
        "supported_levels": [
            {"value": "low", "label": "Low", "description": "Fast"},
            {"value": "medium", "label": "Medium"},
            {"value": "ultra", "label": "Ultra"},
        ],
        "default_level": "medium",
    }
    assert (last.id, last.label, last.thinking) == ("gpt-9", "GPT-9", None)
    assert "secret" not in _by_id(models)
    assert [model.id for model in models if model.default] == ["gpt-5.5"]
    assert _by_id(models)["o3"].thinking is None


@pytest.mark.parametrize("text", ["", "no json", "{}", '{"models": 5}', "[1"])
def test_a_codex_that_tells_nothing_is_unreadable(text: str) -> None:
    with pytest.raises(UnreadableCatalogue):
        catalogue.read_codex_catalogue(text, ())


def test_opencode_tells_models_and_their_variants() -> None:
    verbose = """\
opencode/big-pickle
{
  "id": "big-pickle",
  "name": "Big Pickle",
  "capabilities": {"reasoning": true},
  "variants": {"high": {}, "custom-one": {}}
}
anthropic/claude-x
{
  "name": "Claude X",
  "capabilities": {"reasoning": false},
  "variants": {"fast": {}}
}
openai/gpt-5
{"name": "GPT-5", "reasoning": true, "variants": {}}
"""
    models = _by_id(catalogue.read_opencode_models(verbose))
    assert list(models) == ["opencode/big-pickle", "anthropic/claude-x", "openai/gpt-5"]
    assert models["opencode/big-pickle"].label == "Big Pickle"
    assert models["opencode/big-pickle"].provider == "opencode"
    assert _levels(models["opencode/big-pickle"]) == ["high", "custom-one"]
    assert models["anthropic/claude-x"].thinking is None
    assert models["openai/gpt-5"].thinking is None
    plain = catalogue.read_opencode_models("a/b\nc/d/e\n\nError: x\n")
    assert [model.id for model in plain] == ["a/b", "c/d/e"]


def test_other_programs_tell_lists() -> None:
    pi = catalogue.read_pi_models(
        "Warning: no key\nprovider   model            context\n"
        "anthropic  claude-opus-4-8  200K\nopenai:gpt-5\nNo models match pattern x\nanthropic claude-opus-4-8\n"
    )
    assert [model.id for model in pi] == ["anthropic/claude-opus-4-8", "openai/gpt-5"]
    agy = catalogue.read_antigravity_models("Gemini 3 Pro\n\nfast\tGemini Flash\n")
    assert [(model.id, model.label) for model in agy] == [
        ("Gemini 3 Pro", "Gemini 3 Pro"),
        ("fast", "Gemini Flash"),
    ]
    cursor = catalogue.read_cursor_models(
        "Available models\n\nauto - Auto (current, default)\ngpt-5 - GPT-5 (fast)\n"
    )
    assert [(model.id, model.label, model.default) for model in cursor] == [
        ("auto", "Auto", True),
        ("gpt-5", "GPT-5 (fast)", False),
    ]
    agents = 'banner\n[{"id": "main", "name": "Main", "default": true}, {"name": "other"}, 5]'
    assert [(m.id, m.label, m.default) for m in catalogue.read_openclaw_agents(agents)] == [
        ("main", "Main", True),
        ("other", "other", False),
    ]
    assert catalogue.read_openclaw_agents('{"agents": [{"id": "a"}]}')[0].id == "a"
    buddy = catalogue.read_codebuddy_help(
        "  --model <m>  Model (Currently supported: (glm-5, gpt-5))\n"
        "  --effort <e> (minimal, low, high, max)\n"
    )
    assert [(model.id, model.default, _levels(model)) for model in buddy] == [
        ("glm-5", True, ["low", "high"]),
        ("gpt-5", False, ["low", "high"]),
    ]
    assert catalogue.read_codebuddy_help("nothing") == []


@pytest.mark.parametrize(
    "session",
    [
        {
            "sessionId": "s",
            "models": {
                "currentModelId": "b",
                "availableModels": [{"modelId": "a/x", "name": "A"}, {"modelId": "b"}, {"name": "?"}],
            },
        },
        {"models": {"current_model_id": "b", "available_models": [{"model_id": "a/x", "name": "A"}, {"id": "b"}]}},
        {
            "configOptions": [
                {"id": "mode", "options": [{"value": "plan"}]},
                {"id": "m", "category": "model", "currentValue": "b", "options": [
                    {"group": "g", "options": [{"value": "a/x", "name": "A"}]}, {"value": "b"},
                ]},
            ]
        },
    ],
)  # fmt: skip
def test_acp_sessions_tell_models_in_three_ways(session: Any) -> None:
    models = catalogue.read_acp_session(session)
    assert [(m.id, m.label, m.provider, m.default) for m in models] == [
        ("a/x", "A", "a", False),
        ("b", "b", "", True),
    ]


@pytest.mark.parametrize("session", [None, 5, {}, {"models": None}, {"configOptions": [{}]}])
def test_acp_sessions_may_tell_nothing(session: Any) -> None:
    assert catalogue.read_acp_session(session) == []


@pytest.mark.parametrize(
    ("model", "level", "expected"),
    [
        ("", "", True),
        ("unknown", "", True),
        ("", "high", True),
        ("", "xhigh", False),  # the default is a sonnet
        ("claude-opus-4-8", "xhigh", True),
        ("claude-opus-4-8[1m]", "xhigh", True),
        ("claude-haiku-4-5-20251001", "max", False),
        ("unknown", "high", False),
    ],
)
def test_levels_are_checked_against_the_model(model: str, level: str, expected: bool) -> None:
    models = catalogue.claude_models(catalogue.read_claude_help(CLAUDE_HELP))
    assert is_valid_level(models, model, level) is expected


def test_without_a_default_a_level_any_model_offers_will_do() -> None:
    thinking = catalogue.thinking_of(["fast"])
    models = [Model(id="a", label="A"), Model(id="b", label="B", thinking=thinking)]
    assert is_valid_level(models, "", "fast")
    assert not is_valid_level(models, "", "slow")
    assert not is_valid_level(models, "a", "fast")


def test_vendors_are_guessed_from_ids() -> None:
    told = [model.provider for model in catalogue.copilot_models()]
    assert told == ["openai"] * 8 + ["anthropic"] * 4
    assert [catalogue.vendor_of(name) for name in ("o3-mini", "gemini-3", "grok-4", "opal")] == [
        "openai",
        "google",
        "xai",
        "",
    ]
