"""Schemathesis plays a client that knows the OpenAPI document alone.

It must find no error of the server's, no answer that the document does not tell of, nothing refused that it
allows, and nothing taken that it forbids. All of its checks are on.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from typing import Any, cast

import pytest

from expertmix.agents.engines import Request, ToolCall
from expertmix.agents.engines.scripted import Line

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None, reason="needs schemathesis"
)

CHECKS = {
    "content_type_conformance",
    "ignored_auth",
    "negative_data_rejection",
    "not_a_server_error",
    "positive_data_acceptance",
    "response_schema_conformance",
    "status_code_conformance",
    "unsupported_method",
}
"""Those that this server gives something to look at; the others are on too."""
KEY = "secret"


def speak(request: Request) -> str | Line:
    """Thinks, and asks for a call where it may."""
    if not request.tools:
        return Line(text="Answer: Paris", reasoning="I know.")
    name = request.tools[0]["name"]
    return Line(tool_calls=(ToolCall(id="c1", name=name, arguments="{}"),), reasoning="A tool.")


def choose_from_tools(body: object) -> object:
    """What JSON Schema cannot say: the tool that must be called is one of `tools`."""
    if not isinstance(body, dict):
        return body
    row = cast("dict[str, Any]", body)
    tools, choice = row.get("tools"), row.get("tool_choice")
    if choice == "required" and tools in (None, []):
        return {**row, "tool_choice": "auto"}
    try:
        wanted = cast("Any", choice)["function"]["name"]
        names = [tool["function"]["name"] for tool in cast("Any", tools) or ()]
    except (TypeError, KeyError, IndexError):
        return body  # it is to be refused anyway
    return body if wanted in names else {**row, "tool_choice": "auto"}


def map_case(context: object, case: Any) -> Any:
    """Called by Schemathesis with each request that it made up."""
    case.body = choose_from_tools(case.body)
    return case


OFF = {"enabled": False}
SHORT = {"generation": {"max-examples": 10}}


@pytest.mark.parametrize(
    ("key", "examples", "phases"),
    # Little follows from one answer for another request, and with a key nothing changes but that it is
    # asked for: there a short look is enough.
    [(None, 100, {"stateful": SHORT}), (KEY, 10, {"coverage": OFF, "stateful": OFF})],
)
def test_the_server_does_what_its_document_says(
    start: Any, expert: Any, key: str | None, examples: int, phases: dict[str, Any]
) -> None:
    import schemathesis
    from schemathesis.config import SchemathesisConfig
    from schemathesis.engine import events, from_schema

    said = {alias: expert(alias, speak) for alias in "ab"}
    running = start(said, file={"aggregator": "a"}, window=0.0, api_key=key)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    settings: dict[str, Any] = {
        "seed": 7,
        "workers": 1,
        "max-stream-events": 10_000,
        "phases": phases,
        "headers": headers,
        "continue-on-failure": True,
        "generation": {
            "deterministic": True,
            "database": "none",
            "max-examples": examples,
            "no-shrink": True,
        },
    }
    config = SchemathesisConfig.from_dict(settings)
    address = f"{running.url}/openapi.json"
    schema: Any = schemathesis.openapi.from_url(address, config=config, headers=headers)
    schema.hook(map_case)

    failures: dict[str, str] = {}
    looked: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for event in from_schema(schema).execute():
        assert not isinstance(event, events.NonFatalError | events.FatalError), event
        if not isinstance(event, events.ScenarioFinished):
            continue
        for case, checks in event.recorder.checks.items():
            for check in checks:
                looked[check.name] += 1
                if (found := check.failure_info) is not None:
                    kind = f"{event.label}: {check.name}"
                    failures.setdefault(kind, f"{found.failure.message}\n{found.code_sample}")
            response: Any = event.recorder.interactions[case].response
            if response is None:
                continue
            asked[f"{event.label} {response.status_code}"] += 1
            [kind] = response.headers.get("content-type", [""])
            if kind.startswith("text/event-stream"):
                assert b'"error"' not in response.content
                assert response.content.endswith(b"data: [DONE]\n\n")
    assert not failures, "\n\n".join(f"{kind}: {told}" for kind, told in failures.items())
    assert looked.keys() >= CHECKS
    # It got through to panels, experts and their tools, not only to refusals.
    assert asked["POST /v1/chat/completions 200"] >= examples / 2
    asked_tools = [request.tools for engine in said.values() for request in engine.requests]
    assert any(asked_tools) or key is not None
