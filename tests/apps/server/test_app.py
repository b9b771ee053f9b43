"""Which models there are, whether the server is well, what it counts, and that its document is true."""

from __future__ import annotations

from typing import Any

import pytest
from openai import NotFoundError, OpenAI

MODELS = ["expertmix/auto", "expertmix/random", "expert/a", "expert/b", "expert/c"]


def test_models_are_the_panels_and_the_experts(server: Any) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == MODELS
        assert client.models.retrieve("expert/b").owned_by == "expertmix"
        with pytest.raises(NotFoundError, match="expertmix/auto, expertmix/random, expert/a"):
            client.models.retrieve("expert/nobody")


def test_health_says_who_is_there(server: Any) -> None:
    told = server.web.get("/health").json()
    assert (told["status"], told["experts"]) == ("ok", ["a", "b", "c"])
    assert told["version"].count(".") >= 2 or told["version"]


def test_metrics_count_requests_batches_and_what_the_pool_does(server: Any) -> None:
    assert server.post("expertmix/auto", "Where?").status_code == 200
    assert server.post("made/up", "Where?").status_code == 404
    told = server.web.get("/metrics").text
    assert 'expertmix_server_requests_total{model="expertmix/auto",status="200"}' in told
    assert 'expertmix_server_requests_total{model="none",status="404"}' in told
    assert "made" not in told
    assert "expertmix_server_batch_questions_count" in told
    assert 'expertmix_requests_finished_total{expert="a",stage="reason"}' in told


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/", 404, "no such path"),
        ("GET", "/docs", 404, "no such path"),
        ("GET", "/v1/completions", 404, "no such path"),
        ("GET", "/v1/chat/completions", 405, "method"),
        ("DELETE", "/v1/models", 405, "method"),
    ],
)
def test_other_paths_are_refused_in_the_shape_of_an_error(
    server: Any, method: str, path: str, status: int, words: str
) -> None:
    reply = server.web.request(method, path)
    assert reply.status_code == status
    assert words in reply.json()["error"]["message"]
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_no_other_origin_is_let_in(server: Any) -> None:
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    reply = server.web.options("/v1/chat/completions", headers=asked)
    assert not any(name.startswith("access-control") for name in reply.headers)


def test_the_document_names_models_and_limits(server: Any) -> None:
    document = server.web.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert schemas["PanelRequest"]["properties"]["model"]["enum"] == MODELS[:2]
    assert schemas["ExpertRequest"]["properties"]["model"]["enum"] == MODELS[2:]
    assert schemas["ExpertRequest"]["properties"]["n"]["anyOf"][0]["maximum"] == 8
    assert schemas["ExpertRequest"]["additionalProperties"] is False
    responses = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(responses) == {"200", "4XX", "5XX"}
    assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
