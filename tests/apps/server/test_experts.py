"""One expert through OpenAI's own client: its words, samples, stop strings, seeds, log-probabilities, schemas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from expertmix.agents.engines import Request
from expertmix.agents.engines.scripted import Faults

HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def seen(serving: Any, expert: Any) -> Iterator[Any]:
    """A server with an expert that counts in words, one that is told a schema, and some that are broken."""
    engines = {
        "counter": expert("counter", {"*": ["one two three four", "five six"]}),
        "object": expert("object", {"*": '{"city": "Paris", "people": 2}'}),
        "teacher": expert("teacher", {"*": "Listen."}),
        "small": expert("small", {"*": "x"}, context_length=3),
        "absent": expert("absent", {"*": "x"}, faults=Faults(load="/home/ada/secret is not there")),
        "broken": expert("broken", lambda request: 1 / 0),  # pyright: ignore[reportUnknownLambdaType]
        "half": expert("half", {"*": "half \ud800 pair"}),
    }
    keys = {
        "teacher": {"persona": "You explain.", "sampling": {"temperature": 0.5, "max_tokens": 7}}
    }
    with serving(engines, file={"experts": keys}, max_n=4) as running:
        yield running


@pytest.fixture(scope="module")
def client(seen: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{seen.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def last(seen: Any, alias: str) -> Request:
    return seen.engines[alias].requests[-1]


def test_an_expert_answers_in_its_own_words(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="expert/counter", messages=HELLO)
    assert reply.choices[0].message.content == "one two three four"
    assert (reply.object, reply.model, reply.choices[0].finish_reason) == (
        "chat.completion",
        "expert/counter",
        "stop",
    )
    assert reply.id.startswith("chatcmpl-")
    assert reply.system_fingerprint is not None
    assert reply.system_fingerprint.startswith("fp_")
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (
        1,
        4,
        5,
    )


async def test_the_asynchronous_client_works_as_well(seen: Any) -> None:
    async with AsyncOpenAI(base_url=f"{seen.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="expert/counter", messages=HELLO, stream=True
        )
        pieces = [chunk.choices[0].delta.content async for chunk in stream]
    assert pieces == ["", "one", " two", " three", " four", None]


def test_what_is_left_open_is_as_the_pool_file_says(client: OpenAI, seen: Any) -> None:
    client.chat.completions.create(model="expert/teacher", messages=HELLO)
    asked = last(seen, "teacher")
    assert [turn["role"] for turn in asked.messages] == ["system", "user"]
    assert (asked.sampling.temperature, asked.sampling.max_tokens, asked.sampling.seed) == (
        0.5,
        7,
        None,
    )
    client.chat.completions.create(
        model="expert/teacher", messages=HELLO, temperature=0, top_p=0.9, max_completion_tokens=9
    )
    asked = last(seen, "teacher")
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.max_tokens) == (
        0.0,
        0.9,
        9,
    )


def test_several_answers_have_seeds_of_their_own(client: OpenAI, seen: Any) -> None:
    def ask() -> list[int | None]:
        reply = client.chat.completions.create(
            model="expert/counter", messages=HELLO, n=3, seed=11, temperature=1
        )
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        texts = [choice.message.content for choice in reply.choices]
        assert texts == ["one two three four", "five six", "one two three four"]
        assert reply.usage is not None
        assert reply.usage.total_tokens == 3 + 10
        return [request.sampling.seed for request in seen.engines["counter"].requests[-3:]]

    first, second = ask(), ask()
    assert first == second
    assert first[0] == 11
    assert len(set(first)) == 3


def test_stop_strings_and_limits_end_an_answer(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="expert/counter", messages=HELLO, stop=" three")
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("one two", "stop")
    reply = client.chat.completions.create(
        model="expert/counter", messages=HELLO, max_tokens=1, stop=["x", "y"]
    )
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("one", "length")


def test_log_probabilities_come_where_the_engine_gives_them(client: OpenAI, seen: Any) -> None:
    reply = client.chat.completions.create(
        model="expert/counter", messages=HELLO, logprobs=True, top_logprobs=2
    )
    told = reply.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert [entry.token for entry in told.content] == ["one", "two", "three", "four"]
    assert told.content[0].bytes == list(b"one")
    assert last(seen, "counter").sampling.logprobs == 2
    plain = client.chat.completions.create(model="expert/counter", messages=HELLO)
    assert plain.choices[0].logprobs is None


def test_a_schema_reaches_the_engine_and_its_answer_is_parsed(client: OpenAI, seen: Any) -> None:
    class Place(BaseModel):
        city: str
        people: int

    reply = client.chat.completions.parse(
        model="expert/object", messages=HELLO, response_format=Place
    )
    assert reply.choices[0].message.parsed == Place(city="Paris", people=2)
    schema = last(seen, "object").sampling.json_schema
    assert schema is not None
    assert set(schema["properties"]) == {"city", "people"}
    client.chat.completions.create(
        model="expert/object", messages=HELLO, response_format={"type": "json_object"}
    )
    assert last(seen, "object").sampling.json_schema == {"type": "object"}


def test_several_answers_are_streamed_side_by_side(client: OpenAI) -> None:
    texts: dict[int, str] = {}
    finished: list[int] = []
    usage = None
    for chunk in client.chat.completions.create(
        model="expert/counter",
        messages=HELLO,
        n=2,
        logprobs=True,
        stream=True,
        stream_options={"include_usage": True},
    ):
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason is not None:
                finished.append(choice.index)
                assert choice.logprobs is not None
                assert choice.logprobs.content is not None
                assert (
                    " ".join(entry.token for entry in choice.logprobs.content)
                    == texts[choice.index].strip()
                )
    assert texts == {0: "one two three four", 1: "five six"}
    assert sorted(finished) == [0, 1]
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (2, 6)


def test_more_answers_than_allowed_are_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="n: at most 4"):
        client.chat.completions.create(model="expert/counter", messages=HELLO, n=5)


@pytest.mark.parametrize(
    ("alias", "status", "words", "code"),
    [
        ("small", 400, "do not fit the context window", "context_length_exceeded"),
        ("absent", 503, 'expert "absent" could not be loaded', "expert_unavailable"),
        ("broken", 502, 'expert "broken" failed', "expert_failed"),
        ("nobody", 404, "there is no such model", "model_not_found"),
    ],
)
def test_a_failure_is_told_by_its_kind_alone(
    client: OpenAI, alias: str, status: int, words: str, code: str
) -> None:
    messages: Any = [{"role": "user", "content": "my very secret words"}]
    with pytest.raises(openai.APIStatusError, match=words) as caught:
        client.chat.completions.create(model=f"expert/{alias}", messages=messages)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    for secret in ("/home/ada", "secret words", "division", "Traceback"):
        assert secret not in caught.value.response.text


def test_a_failure_in_a_stream_is_an_event_of_its_own(client: OpenAI, seen: Any) -> None:
    with pytest.raises(openai.APIError, match='expert "broken" failed'):
        list(client.chat.completions.create(model="expert/broken", messages=HELLO, stream=True))
    text = seen.post("expert/broken", "hello", stream=True).text
    assert text.rstrip().endswith("data: [DONE]")
    assert '"content": ""' in text
    told = seen.web.get("/metrics").text
    assert 'expertmix_server_requests_total{model="expert/broken",status="502"}' in told


def test_half_a_surrogate_pair_of_a_model_does_no_harm(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="expert/half", messages=HELLO)
    assert reply.choices[0].message.content == "half ? pair"
    chunks = client.chat.completions.create(model="expert/half", messages=HELLO, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "half ? pair"
