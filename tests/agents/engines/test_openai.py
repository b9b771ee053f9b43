"""The engine for addresses answers, tries again where that helps, and says clearly where not."""

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from fault_server import (
    Behaviour,
    FaultServer,
    Seen,
    body_of,
    event_of,
    fail,
    hang,
    raw,
    say,
    stream_raw,
)

from expertmix.agents.engines import (
    EngineError,
    Failure,
    Message,
    OptionScore,
    Reply,
    Request,
    Sampling,
)
from expertmix.agents.engines.endpoint import Endpoint
from expertmix.agents.engines.openai import OpenAIEngine
from expertmix.retrieval import InputError

KEY = "sk-secret-0123456789"
Connect = Callable[..., OpenAIEngine]


def ask(
    id: str = "r", text: str = "hello", sampling: Sampling | None = None, **other: Any
) -> Request:
    messages: tuple[Message, ...] = ({"role": "user", "content": text},)
    return Request(id=id, messages=messages, sampling=sampling or Sampling(), **other)


def failure_of(reply: Reply) -> Failure:
    assert reply.failure is not None
    assert reply.finish == "error"
    return reply.failure


@pytest_asyncio.fixture
async def connect(server: FaultServer) -> AsyncIterator[Connect]:
    """Builds engines for the fault server and closes them."""
    engines: list[OpenAIEngine] = []

    def connect(**settings: Any) -> OpenAIEngine:
        engines.append(OpenAIEngine("far", server.address, "smol", **settings))
        return engines[-1]

    yield connect
    for engine in engines:
        await engine.close()


async def one(engine: OpenAIEngine, request: Request | None = None) -> Reply:
    await engine.start()
    [reply] = await engine.generate([request or ask()])
    return reply


async def streamed(engine: OpenAIEngine) -> tuple[list[str], Reply]:
    await engine.start()
    chunks = [chunk async for chunk in engine.stream(ask())]
    reply = chunks[-1].reply
    assert reply is not None
    return [chunk.text for chunk in chunks[:-1]], reply


def timed(times: list[float], behaviour: Behaviour) -> Behaviour:
    """Notes when a request arrives."""

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        times.append(time.perf_counter())
        await behaviour(seen, writer)

    return behave


async def test_start_reads_the_context_length_and_the_answer_its_usage(
    server: FaultServer, connect: Connect
) -> None:
    engine = connect()
    load = await engine.start()
    reply = await one(engine)
    assert load.context_length == 512
    assert (reply.text, reply.finish) == ("echo: hello", "stop")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (7, 2)
    assert reply.usage.cached_tokens == 3


async def test_everything_that_sampling_says_is_sent(server: FaultServer, connect: Connect) -> None:
    sampling = Sampling(
        temperature=0.5,
        top_p=0.9,
        max_tokens=17,
        stop=("###",),
        seed=3,
        logprobs=2,
        json_schema={"type": "object"},
    )
    await one(connect(extra={"top_k": 5, "top_p": None}), ask(sampling=sampling))
    assert server.seen[0].path == "/v1/chat/completions"
    assert server.seen[0].body == {
        "model": "smol",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0.5,
        "top_k": 5,
        "max_tokens": 17,
        "stop": ["###"],
        "seed": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
    }


async def test_a_final_assistant_turn_is_continued_and_no_other(
    server: FaultServer, connect: Connect
) -> None:
    engine = connect()
    turns: tuple[Message, ...] = (
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    )
    await one(engine, Request(id="r", messages=turns))
    await one(engine)
    assert server.seen[0].body["continue_final_message"] is True
    assert server.seen[0].body["add_generation_prompt"] is False
    assert "continue_final_message" not in server.seen[1].body


async def test_log_probabilities_are_read_and_thoughts_are_kept_apart(
    server: FaultServer, connect: Connect
) -> None:
    body = body_of("ok", finish="length", message={"reasoning_content": "hm, let me think"})
    top = [{"token": "ok", "logprob": -0.5}, {"token": "no", "logprob": -1.5}]
    body["choices"][0]["logprobs"] = {
        "content": [{"token": "ok", "logprob": -0.5, "top_logprobs": top}, {"token": 3}]
    }
    server.plan = [raw(json.dumps(body).encode())]
    reply = await one(connect())
    assert (reply.text, reply.finish) == ("ok", "length")
    assert reply.reasoning == "hm, let me think"
    [token] = reply.logprobs
    assert (token.token, token.logprob) == ("ok", -0.5)
    assert token.top == (("ok", -0.5), ("no", -1.5))


async def test_half_a_surrogate_pair_becomes_text_that_can_be_written(
    server: FaultServer, connect: Connect
) -> None:
    server.plan = [raw(json.dumps(body_of("a\ud83db")).encode())]
    reply = await one(connect(), ask(text="x\ud83dy"))
    assert reply.text == "a?b"


@pytest.mark.parametrize("extra", [{"options": ("a", "b")}, {"adapter": "maths"}])
async def test_options_and_adapters_are_refused_without_asking(
    server: FaultServer, connect: Connect, extra: dict[str, Any]
) -> None:
    reply = await one(connect(), ask(**extra))
    assert failure_of(reply).kind == "refused"
    assert reply.scores == tuple[OptionScore, ...]()
    assert server.seen == []


async def test_429_waits_as_long_as_the_server_asks(server: FaultServer, connect: Connect) -> None:
    server.plan = [fail(429, "slow down", headers={"Retry-After": "0.2"})]
    engine = connect()
    await engine.start()
    began = time.perf_counter()
    reply = await one(engine)
    assert reply.text == "echo: hello"
    assert 0.2 <= time.perf_counter() - began < 2
    assert len(server.seen) == 2


async def test_a_wait_past_the_timeout_fails_at_once_with_the_reason(
    server: FaultServer, connect: Connect
) -> None:
    server.plan = [fail(429, "quota is spent", headers={"Retry-After": "3600"})]
    failure = failure_of(await one(connect(timeout=5)))
    assert failure.kind == "address"
    assert "429: quota is spent" in failure.message
    assert failure.retryable
    assert len(server.seen) == 1


async def test_500_then_200_is_an_answer(server: FaultServer, connect: Connect) -> None:
    server.plan = [fail(500), raw(b"<html>bad gateway</html>", status=502)]
    reply = await one(connect(retries=2))
    assert reply.text == "echo: hello"
    assert len(server.seen) == 3


async def test_retries_end(server: FaultServer, connect: Connect) -> None:
    server.plan = [fail(503, "overloaded")] * 9
    failure = failure_of(await one(connect(retries=1)))
    assert (failure.kind, failure.retryable) == ("address", True)
    assert "503: overloaded" in failure.message
    assert len(server.seen) == 2


async def test_the_servers_own_words_come_cleaned_and_shortened_and_are_not_retried(
    server: FaultServer, connect: Connect
) -> None:
    server.plan = [fail(400, "\x1b[31mno such\nfield\u202e " + "x" * 9999)]
    failure = failure_of(await one(connect()))
    assert (failure.kind, failure.retryable) == ("address", False)
    assert "answered 400: [31mno such field xxx" in failure.message
    assert failure.message.isprintable()
    assert len(failure.message) < 400
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 512 tokens. However, you requested 700 tokens.",
        "the request exceeds the available context size, try increasing it",
        "prompt is too long: 9 tokens",
    ],
)
async def test_a_prompt_past_the_context_window_is_told_apart(
    server: FaultServer, connect: Connect, message: str
) -> None:
    server.plan = [fail(400, message)]
    failure = failure_of(await one(connect()))
    assert failure.kind == "context"
    assert message[:30] in failure.message


@pytest.mark.parametrize(
    "body",
    [
        b"<html>hello</html>",
        b"[]",
        b'{"choices": null}',
        b'{"choices": []}',
        b"[" * 100_000,
        b'{"choices": [{"message"',
        b"\xff\xfe\x00",
        b"",
    ],
)
async def test_garbage_is_a_failure_that_says_so(
    server: FaultServer, connect: Connect, body: bytes
) -> None:
    server.plan = [raw(body)]
    failure = failure_of(await one(connect()))
    assert failure.kind == "address"
    assert failure.message.startswith(f"{server.address} sent ")
    assert len(failure.message) < 400


async def test_a_wrong_shape_inside_an_answer_is_as_good_as_absent(
    server: FaultServer, connect: Connect
) -> None:
    body = b'{"choices": [7, {"message": {"content": [{"text": "hi"}, 3]}, "logprobs": 5}], "usage": 4}'
    server.plan = [raw(body.replace(b"[7, ", b"[")), raw(body)]
    engine = connect()
    assert (await one(engine)).text == "hi"
    assert (await one(engine)).failure is None


async def test_an_error_inside_a_200_is_an_error(server: FaultServer, connect: Connect) -> None:
    server.plan = [raw(b'{"error": {"message": "model crashed"}}')]
    failure = failure_of(await one(connect()))
    assert "reported: model crashed" in failure.message


async def test_a_filtered_answer_is_refused(server: FaultServer, connect: Connect) -> None:
    server.plan = [say("half of", finish="content_filter")]
    assert failure_of(await one(connect())).kind == "refused"


async def test_a_server_that_never_answers_is_a_timeout(
    server: FaultServer, connect: Connect
) -> None:
    server.plan = [hang()]
    failure = failure_of(await one(connect(timeout=0.3)))
    assert (failure.kind, failure.retryable) == ("timeout", True)
    assert "within 0.3 s" in failure.message


async def test_a_server_that_drips_is_a_timeout_too(server: FaultServer, connect: Connect) -> None:
    server.plan = [stream_raw([event_of("a ")] * 100, pause=0.05)]
    pieces, reply = await streamed(connect(timeout=0.4))
    assert 0 < len(pieces) < 20
    assert failure_of(reply).kind == "timeout"


async def test_one_bad_request_costs_the_others_nothing(
    server: FaultServer, connect: Connect
) -> None:
    server.plan = [fail(400, "no"), say("fine"), say("fine")]
    engine = connect(concurrency=1)
    await engine.start()
    replies = await engine.generate([ask("a"), ask("b"), ask("c")])
    assert [reply.request_id for reply in replies] == ["a", "b", "c"]
    assert [reply.failure is None for reply in replies] == [False, True, True]


async def test_no_more_requests_are_out_than_allowed(server: FaultServer, connect: Connect) -> None:
    server.plan = [stream_raw([event_of("x", finish="stop")], pause=0.02) for _ in range(12)]
    engine = connect(concurrency=3)
    await engine.start()
    halves = [[ask(f"{half}{n}") for n in range(6)] for half in "ab"]
    await asyncio.gather(*(engine.generate(half) for half in halves))
    assert len(server.seen) == 12
    assert server.peak == 3


async def test_engines_of_one_address_share_its_places(
    server: FaultServer, connect: Connect
) -> None:
    server.plan = [stream_raw([event_of("x", finish="stop")], pause=0.02) for _ in range(12)]
    endpoint = Endpoint(concurrency=3)
    engines = [connect(concurrency=3, endpoint=endpoint) for _ in range(2)]
    for engine in engines:
        await engine.start()
    batch = [ask(f"{n}") for n in range(6)]
    halves = await asyncio.gather(*(engine.generate(batch) for engine in engines))
    assert [reply.text for half in halves for reply in half] == ["x"] * 12
    assert server.peak == 3


async def test_429_at_one_engine_holds_the_others_back(
    server: FaultServer, connect: Connect
) -> None:
    times: list[float] = []
    limit = timed(times, fail(429, "slow down", headers={"Retry-After": "0.4"}))
    server.plan = [limit, *(timed(times, say("fine")) for _ in range(4))]
    endpoint = Endpoint(concurrency=2)
    first, second = connect(endpoint=endpoint), connect(endpoint=endpoint)
    await second.start()
    call = asyncio.create_task(one(first))
    await _until(lambda: len(server.seen) == 1 and server.busy == 0)
    later = await second.generate([ask(f"{n}") for n in range(3)])
    assert [reply.text for reply in [await call, *later]] == ["fine"] * 4
    assert all(0.4 <= time - times[0] < 5 for time in times[1:])


async def test_who_cannot_wait_for_a_pause_is_told_that_the_address_is_rate_limited(
    server: FaultServer, connect: Connect
) -> None:
    server.plan = [fail(429, "slow down", headers={"Retry-After": "1.2"})]
    endpoint = Endpoint()
    patient, hasty = connect(endpoint=endpoint), connect(endpoint=endpoint, timeout=0.5)
    await hasty.start()
    call = asyncio.create_task(one(patient))
    await _until(lambda: len(server.seen) == 1 and server.busy == 0)
    await asyncio.sleep(0.1)
    began = time.perf_counter()
    failures = [failure_of(reply) for reply in await hasty.generate([ask("a"), ask("b")])]
    assert time.perf_counter() - began < 0.9, "they waited for the pause"
    for failure in failures:
        assert (failure.kind, failure.retryable) == ("address", True)
        assert f"{server.address} answered 429: slow down; the address is rate limited for" in (
            failure.message
        )
        assert failure.message.endswith("this request may take 0.5 s")
    assert (await call).text == "echo: hello"
    assert len(server.seen) == 2


async def test_a_request_that_came_too_early_has_lost_no_attempt(
    server: FaultServer, connect: Connect
) -> None:
    server.plan = [fail(429, headers={"Retry-After": "0.1"})] * 3
    assert (await one(connect(retries=0))).text == "echo: hello"
    server.plan = [fail(503, "overloaded", headers={"Retry-After": "0.1"})] * 3
    assert "503: overloaded" in failure_of(await one(connect(retries=1))).message
    assert len(server.seen) == 6


async def test_a_timeout_says_how_much_of_it_the_server_asked_for(
    server: FaultServer, connect: Connect
) -> None:
    server.plan = [fail(429, headers={"Retry-After": "0.3"}), hang()]
    failure = failure_of(await one(connect(timeout=0.6)))
    assert failure.kind == "timeout"
    assert re.search(r"within 0.6 s, 0.[23] of them rate limited$", failure.message)


async def test_a_start_waits_for_a_pause(server: FaultServer, connect: Connect) -> None:
    async def refuse_once(seen: Seen, writer: asyncio.StreamWriter) -> None:
        server.listing = None
        await fail(429, "slow down", headers={"Retry-After": "0.2"})(seen, writer)

    server.listing = refuse_once
    began = time.perf_counter()
    load = await connect().start()
    assert load.context_length == 512
    assert 0.2 <= time.perf_counter() - began < 2
    server.listing = fail(429, "slow down", headers={"Retry-After": "9"})
    with pytest.raises(EngineError, match=r"answered 429: slow down; .* rate limited for 9 s"):
        await connect(timeout=5).start()


async def test_no_more_requests_start_than_the_rate_allows(
    server: FaultServer, connect: Connect
) -> None:
    endpoint = Endpoint(concurrency=16, requests_per_minute=600)  # 60 at once, 541 a minute
    engines = [connect(endpoint=endpoint) for _ in range(2)]
    for engine in engines:
        await engine.start()
    batch = [ask(f"{n}") for n in range(32)]
    began = time.perf_counter()
    halves = await asyncio.gather(*(engine.generate(batch) for engine in engines))
    assert all(reply.text == "echo: hello" for half in halves for reply in half)
    assert 4 / 541 * 60 <= time.perf_counter() - began < 5


async def test_tokens_are_kept_back_until_it_is_known_what_a_reply_cost(
    server: FaultServer, connect: Connect
) -> None:
    async def say_late(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        await say("fine")(seen, writer)

    times: list[float] = []
    server.plan = [timed(times, each) for each in (say_late, say("fine"), say("fine"), say("fine"))]
    engine = connect(endpoint=Endpoint(tokens_per_minute=6000))  # 600 at once, 90 a second
    await engine.start()
    sampling = Sampling(max_tokens=550)
    await engine.generate([ask(f"{n}", sampling=sampling) for n in range(4)])
    assert times[1] - times[0] >= 0.2
    assert times[3] - times[0] < 2


async def test_what_was_turned_away_has_cost_no_tokens(
    server: FaultServer, connect: Connect
) -> None:
    server.plan = [fail(400, "no")]
    engine = connect(endpoint=Endpoint(tokens_per_minute=600))
    large = ask(sampling=Sampling(max_tokens=100_000))
    began = time.perf_counter()
    assert failure_of(await one(engine, large)).kind == "address"
    assert (await one(engine)).text == "echo: hello"
    assert time.perf_counter() - began < 2


async def test_who_backs_off_leaves_its_place_to_others(
    server: FaultServer, connect: Connect
) -> None:
    server.plan = [fail(500)]
    endpoint = Endpoint(concurrency=1)
    first, second = connect(endpoint=endpoint), connect(endpoint=endpoint)
    await second.start()
    call = asyncio.create_task(one(first))
    await _until(lambda: len(server.seen) == 1)
    assert (await one(second)).text == "echo: hello"
    assert not call.done()
    assert (await call).text == "echo: hello"


async def test_cancelling_hangs_up_and_keeps_what_is_finished(
    server: FaultServer, connect: Connect
) -> None:
    server.plan = [say("done"), hang(), hang()]
    engine = connect(concurrency=1)
    await engine.start()
    heard: list[str] = []
    call = asyncio.create_task(
        engine.generate([ask("a"), ask("b")], lambda reply: heard.append(reply.text))
    )
    await _until(lambda: len(server.seen) == 2)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await _until(lambda: server.hung_up == 1)
    assert heard == ["done"]


async def test_a_stream_arrives_in_pieces_and_adds_up(
    server: FaultServer, connect: Connect
) -> None:
    pieces, reply = await streamed(connect())
    assert pieces == ["echo: ", "hello"]
    assert (reply.text, reply.finish) == ("echo: hello", "stop")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (7, 5)
    assert server.seen[0].body["stream_options"] == {"include_usage": True}


async def test_events_survive_any_cut_of_the_bytes(server: FaultServer, connect: Connect) -> None:
    text = "naïve \u2028 日本 \x0c end"
    whole = b": comment\r\n\r\n" + event_of(text).replace(b"\n", b"\r\n")
    whole += event_of(finish="length") + event_of(usage=True) + b"data: [DONE]\n\n"
    server.plan = [
        stream_raw([whole[at : at + 1] for at in range(len(whole))]),
        stream_raw([whole]),
        stream_raw([event_of(text) + event_of(finish="length").rstrip()]),
    ]
    engine = connect()
    for _ in range(3):
        pieces, reply = await streamed(engine)
        assert pieces == [text]
        assert (reply.text, reply.finish) == (text, "length")


@pytest.mark.parametrize("reset", [True, False])
async def test_a_stream_that_breaks_off_is_a_failure_but_what_came_is_told(
    server: FaultServer, connect: Connect, reset: bool
) -> None:
    server.plan = [stream_raw([event_of("one "), event_of("two")], reset=reset)]
    pieces, reply = await streamed(connect())
    assert pieces == ["one ", "two"]
    assert failure_of(reply).kind == "address"
    assert len(server.seen) == 1


async def test_a_stream_that_breaks_off_before_its_first_word_is_tried_again(
    server: FaultServer, connect: Connect
) -> None:
    server.plan = [stream_raw([event_of("")], reset=True), stream_raw([b""])]
    pieces, reply = await streamed(connect())
    assert pieces == ["echo: ", "hello"]
    assert reply.text == "echo: hello"
    assert len(server.seen) == 3


async def test_an_error_in_the_middle_of_a_stream_is_reported(
    server: FaultServer, connect: Connect
) -> None:
    error = b'data: {"error": {"message": "engine died"}}\n\n'
    server.plan = [stream_raw([event_of("one "), error, b"data: [DONE]\n\n"])]
    pieces, reply = await streamed(connect())
    assert pieces == ["one "]
    assert "engine died" in failure_of(reply).message


async def test_a_server_that_cannot_stream_is_read_anyway(
    server: FaultServer, connect: Connect
) -> None:
    server.plan = [raw(json.dumps(body_of("all at once")).encode())]
    pieces, reply = await streamed(connect())
    assert pieces == ["all at once"]
    assert reply.text == "all at once"


async def test_leaving_a_stream_hangs_up(server: FaultServer, connect: Connect) -> None:
    server.plan = [stream_raw([event_of("one ")], forever=True)]
    engine = connect()
    await engine.start()
    stream = engine.stream(ask())
    assert (await anext(stream)).text == "one "
    await stream.aclose()
    await _until(lambda: server.hung_up == 1)


async def test_an_address_where_nobody_listens_is_an_engine_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    engine = OpenAIEngine("far", address, "smol")
    with pytest.raises(EngineError, match=f"{address} cannot be reached") as caught:
        await engine.start()
    assert caught.value.failure.kind == "address"
    [reply] = await engine.generate([ask()])
    assert failure_of(reply).kind == "engine"
    await engine.close()


async def test_a_model_that_the_server_does_not_list_is_answered_with_its_list(
    server: FaultServer, connect: Connect
) -> None:
    server.models = {f"m{n:02}": None for n in range(12)} | {"a\x1b[2Jb": None}
    with pytest.raises(EngineError, match=r'no model "smol"; it lists a \[2Jb, m00, .* 5 more$'):
        await connect().start()
    server.models = {"smol:latest": None}
    assert (await connect().start()).context_length is None


@pytest.mark.parametrize(
    ("listing", "complaint"),
    [
        (fail(401, f"Incorrect API key provided: {KEY}."), "401: Incorrect API key provided"),
        (raw(b"<html>"), "sent no JSON: '<html>'; does the address end in /v1"),
        (raw(b'{"data": 3}'), "sent no list of models"),
        (fail(307, headers={"Location": "http://evil.test/v1/models"}), "redirects to http://evil"),
    ],
)
async def test_a_start_that_fails_says_why_and_never_shows_the_key(
    server: FaultServer, connect: Connect, listing: Behaviour, complaint: str
) -> None:
    server.listing = listing
    engine = connect(api_key=f" {KEY}\n")
    with pytest.raises(EngineError, match=complaint) as caught:
        await engine.start()
    assert KEY not in str(caught.value)
    assert KEY not in repr(engine)


async def test_the_key_is_sent_and_stays_out_of_failures(
    server: FaultServer, connect: Connect
) -> None:
    server.plan = [fail(403, f"the key {KEY} has no access"), raw(f"<{KEY}>".encode())]
    engine = connect(api_key=KEY)
    for complaint in ("the key [the key] has no access", "<[the key]>"):
        failure = failure_of(await one(engine))
        assert complaint in failure.message
        assert KEY not in repr(failure)
    assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"


async def test_a_proxy_in_the_environment_is_not_asked_for_loopback(
    server: FaultServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert (await one(connect())).text == "echo: hello"


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("ftp://host/v1", "http or https"),
        ("localhost:8000", "http or https"),
        ("http://", "http or https"),
        ("http://me:hunter2@host/v1", "holds a user or password"),
        ("http://host/v1?key=3", "end with its path"),
        ("http://host:port/v1", "cannot be read"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused(address: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        OpenAIEngine("far", address, "smol")
    assert "hunter2" not in str(caught.value)


def test_a_key_that_no_header_can_carry_is_refused_without_showing_it() -> None:
    with pytest.raises(InputError, match="API key") as caught:
        OpenAIEngine("far", "http://host/v1", "smol", api_key="sk-sécret")
    assert "cret" not in str(caught.value)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", "auto"),
        ("required", "required"),
        ("add", {"type": "function", "function": {"name": "add"}}),
        ("none", None),
    ],
)
async def test_tools_calls_and_results_are_sent_as_openai_has_them(
    server: FaultServer, connect: Connect, choice: str, sent: Any
) -> None:
    turns: tuple[Message, ...] = (
        {"role": "user", "content": "1 + 2?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "name": "add", "arguments": '{"a": 1}'}],
        },
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
    )
    await one(connect(), Request(id="r", messages=turns, tools=(ADD,), tool_choice=choice))

    body = server.seen[0].body
    function = {"name": "add", "arguments": '{"a": 1}'}
    assert body["messages"] == [
        turns[0],
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        turns[2],
    ]
    assert body.get("tools") == (None if sent is None else [{"type": "function", "function": ADD}])
    assert body.get("tool_choice") == sent


async def test_whole_calls_are_read_and_those_without_a_name_are_none(
    server: FaultServer, connect: Connect
) -> None:
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}},
        {"id": "c3", "function": {"arguments": "{}"}},
        "rubbish",
        {"id": 5, "index": "x", "function": {"name": "add"}},
        {"id": "c6", "function": {"name": "add", "arguments": None}},
    ]
    server.plan = [say("", finish="tool_calls", tool_calls=calls)]
    reply = await one(connect(), Request(id="r", messages=ask().messages, tools=(ADD,)))

    assert reply.finish == "stop"
    assert [(call["name"], call["arguments"]) for call in reply.tool_calls] == [
        ("add", '{"a": 1}'),
        ("add", '{"a": 2}'),
        ("add", "{}"),
    ]
    ids = [call["id"] for call in reply.tool_calls]
    assert (ids[0], len(set(ids)), all(ids)) == ("c1", 3, True)


async def test_calls_and_thoughts_that_are_streamed_in_pieces_are_put_together(
    server: FaultServer, connect: Connect
) -> None:
    def piece(index: int, **function: str) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, "function": function}]}

    first = {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "add", "arguments": ""}}]}
    second = {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "sub"}}]}
    deltas = [
        {"role": "assistant", "content": None, "reasoning_content": "Hm"},
        {"reasoning": ", add."},
        {"content": "Let me see."},
        first,
        piece(0, arguments='{"a"'),
        second,
        piece(1, arguments="{"),
        piece(0, arguments=": 1}"),
        piece(1, arguments="}"),
    ]
    events: list[Any] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    lines = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    server.plan = [stream_raw([*lines, b"data: [DONE]\n\n"])]
    engine = connect()
    await engine.start()
    request = Request(id="r", messages=ask().messages, tools=(ADD,))
    chunks = [chunk async for chunk in engine.stream(request)]

    reply = chunks[-1].reply
    assert reply is not None
    assert [(c["id"], c["name"], c["arguments"]) for c in reply.tool_calls] == [
        ("c1", "add", '{"a": 1}'),
        ("c2", "sub", "{}"),
    ]
    assert reply.text == "".join(chunk.text for chunk in chunks) == "Let me see."
    assert reply.reasoning == "".join(chunk.reasoning for chunk in chunks) == "Hm, add."


@pytest.mark.parametrize("index", [{"index": 0}, {"index": None}, {}])
async def test_calls_that_a_server_does_not_number_are_told_apart_by_their_ids(
    server: FaultServer, connect: Connect, index: dict[str, Any]
) -> None:
    deltas = [
        {"tool_calls": [{**index, "id": name, "function": {"name": "add", "arguments": part}}]}
        for name, part in (("c1", '{"a": 1}'), ("c2", '{"a": '), ("c2", "2}"))
    ]
    events = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    lines = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    server.plan = [stream_raw([*lines, b"data: [DONE]\n\n"])]
    engine = connect()
    await engine.start()
    request = Request(id="r", messages=ask().messages, tools=(ADD,))
    [*_, last] = [chunk async for chunk in engine.stream(request)]
    assert last.reply is not None
    told = [(call["id"], json.loads(call["arguments"])) for call in last.reply.tool_calls]
    assert told == [("c1", {"a": 1}), ("c2", {"a": 2})]
