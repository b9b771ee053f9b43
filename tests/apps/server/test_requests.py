"""What cannot be honoured is refused by name; what changes nothing is ignored; junk is never our error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PANEL, EXPERT = "expertmix/auto", "expert/a"


@pytest.mark.parametrize("model", [PANEL, EXPERT])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", "f"),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("logit_bias", {"50256": -100}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
        ("store", True),
        ("store", 0),
        ("reasoning_effort", "high"),
        ("verbosity", "low"),
        ("web_search_options", {}),
        ("top_k", 5),
        ("temprature", 1),
        ("temperature", 2.5),
        ("temperature", "1"),
        ("max_tokens", 0),
        ("max_tokens", 5000),
        ("max_completion_tokens", 2.5),
        ("seed", -1),
        ("stream", "yes"),
        ("messages", []),
        ("messages", "hi"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(
    server: Any, model: str, field: str, value: object
) -> None:
    reply = server.post(model, "Where?", **{field: value})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == field
    assert field in error["message"]
    assert error["message"].count(". ") == 0


@pytest.mark.parametrize("field", ["logprobs", "top_logprobs", "response_format", "n"])
def test_what_only_an_expert_can_do_is_refused_for_the_panel(server: Any, field: str) -> None:
    values: dict[str, Any] = {"logprobs": True, "top_logprobs": 1, "n": 2}
    value = values.get(field, {"type": "json_object"})
    assert server.post(EXPERT, "Where?", **{field: value}).status_code == 200
    reply = server.post(PANEL, "Where?", **{field: value})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, field)


def test_the_extension_is_refused_for_an_expert(server: Any) -> None:
    reply = server.post(EXPERT, "Where?", expertmix={"options": ["here", "there"]})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "expertmix")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image_url", "image_url": {"url": "http://127.0.0.1/secret"}}, "no media"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "no media"),
        ({"type": "file", "file": {"file_id": "x"}}, "no media"),
        ({"type": "text"}, "messages[0].content[0].text"),
        ({"type": "text", "text": "x", "y": 1}, "messages[0].content[0].y"),
    ],
)
def test_only_text_is_read(server: Any, part: dict[str, Any], words: str) -> None:
    for model in (PANEL, EXPERT):
        reply = server.post(model, {"role": "user", "content": [part]})
        assert reply.status_code == 400
        assert words in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]},
        {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "user"},
        {"content": "hi"},
        3,
    ],
)
def test_other_turns_are_refused(server: Any, turn: object) -> None:
    reply = server.post(EXPERT, turn)
    assert reply.status_code == 400
    assert "messages[0]" in reply.json()["error"]["message"]


@pytest.mark.parametrize("model", [PANEL, EXPERT])
def test_what_changes_nothing_is_ignored(server: Any, model: str) -> None:
    reply = server.post(
        model,
        "Where?",
        user="me",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        parallel_tool_calls=True,
        presence_penalty=0,
        frequency_penalty=0.0,
        logit_bias={},
        tools=[],
        tool_choice="none",
        modalities=["text"],
        response_format={"type": "text"},
        stop=[],
        n=1,
        max_tokens=50.0,
        logprobs=False,
        top_p=None,
        top_logprobs=None,
        reasoning_effort=None,
        expertmix=None,
        prediction={"type": "content", "content": "x"},
    )
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"1" * 10_000, "application/json"),
        (b"null", "application/json"),
        (b'{"model": "expert/a", "messages": [{"role": "user", "content": "x"}]}', "text/plain"),
    ],
)
def test_what_is_no_json_object_is_refused(server: Any, content: bytes, kind: str) -> None:
    headers = {"content-type": kind}
    reply = server.web.post("/v1/chat/completions", content=content, headers=headers)
    assert reply.status_code == 400
    assert "JSON object" in reply.json()["error"]["message"] or "not JSON" in reply.text


def test_half_a_surrogate_pair_is_refused_wherever_it_stands(server: Any) -> None:
    half = "\\ud800"
    bodies = [
        '{"model": "expert/a", "messages": [{"role": "user", "content": "HALF"}]}',
        '{"model": "HALF", "messages": [{"role": "user", "content": "x"}]}',
        '{"model": "expert/a", "messages": [{"role": "user", "content": "x"}], "HALF": 1}',
        '{"model": "expert/a", "messages": [{"role": "HALF", "content": "x"}]}',
    ]
    for body in bodies:
        content = body.replace("HALF", half)
        headers = {"content-type": "application/json"}
        reply = server.web.post("/v1/chat/completions", content=content, headers=headers)
        assert reply.status_code == (404 if '"model": "HALF"' in body else 400), body


@pytest.fixture(scope="module")
def hasty(serving: Any) -> Iterator[Any]:
    """A server that lets no question wait for others."""
    with serving(window=0.0) as running:
        yield running


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(), max_size=12)
    | st.sampled_from(["user", "assistant", "text", "json_schema", PANEL, EXPERT]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "schema", "name", "options"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
FIELDS = """
    audio expertmix frequency_penalty function_call functions logit_bias logprobs max_completion_tokens
    max_tokens messages metadata modalities model n prediction presence_penalty response_format seed
    service_tier stop store stream stream_options temperature tool_choice tools top_logprobs top_p user
"""
USUAL = {"model": EXPERT, "messages": [{"role": "user", "content": "Where?"}]}


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    junk=st.dictionaries(
        st.sampled_from(FIELDS.split()) | st.text(max_size=8), json_values, max_size=4
    ),
    model=st.sampled_from([PANEL, EXPERT]),
)
def test_junk_is_never_an_error_of_the_servers(
    hasty: Any, junk: dict[str, Any], model: str
) -> None:
    body = {**USUAL, "model": model, **junk}
    headers = {"content-type": "application/json"}
    reply = hasty.web.post("/v1/chat/completions", content=json.dumps(body), headers=headers)
    assert reply.status_code in (200, 400, 404)
    if reply.status_code != 200:
        assert reply.json()["error"]["message"]
    elif "text/event-stream" in reply.headers["content-type"]:
        assert '"error"' not in reply.text
        assert reply.text.endswith("data: [DONE]\n\n")
