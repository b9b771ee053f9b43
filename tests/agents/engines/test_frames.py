"""Messages cross a socket whole, and requests and replies survive the crossing."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from types import MappingProxyType

import pytest

from expertmix.agents.engines import (
    Failure,
    OptionScore,
    Reply,
    Request,
    Sampling,
    TokenLogprob,
    Usage,
)
from expertmix.agents.engines.frames import (
    pack,
    read_frame,
    receive_frame,
    reply_from_json,
    reply_to_json,
    request_from_json,
    request_to_json,
    unpack,
)

FULL = Request(
    id="q1",
    messages=(
        {"role": "user", "content": "Grüße, 世界"},
        {"role": "tool", "content": "3", "tool_call_id": "c0"},
        {"role": "assistant", "content": "("},
    ),
    sampling=Sampling(
        temperature=0.7,
        top_p=0.9,
        max_tokens=7,
        stop=("\n", "END"),
        seed=11,
        logprobs=2,
        json_schema={"type": "object"},
    ),
    adapter="law",
    options=("A", "B"),
    tools=({"name": "add", "description": "", "parameters": {"type": "object"}},),
    tool_choice="add",
)
ANSWER = Reply(
    request_id="q1",
    text="(A)",
    tool_calls=({"id": "c1", "name": "add", "arguments": '{"a": 1}'},),
    reasoning="Hm.",
    finish="length",
    usage=Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1),
    logprobs=(TokenLogprob(token="(", logprob=-0.5, top=(("(", -0.5), ("[", -1.5))),),
    scores=(OptionScore(logprob=-1.25, tokens=2), OptionScore(logprob=float("-inf"), tokens=1)),
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def crossed(message: dict[str, object]) -> dict[str, object]:
    return unpack(pack(message)[4:])


@pytest.mark.parametrize("request_", [FULL, Request(id="x", messages=())], ids=["full", "bare"])
def test_a_request_survives_the_crossing(request_: Request) -> None:
    assert request_from_json(crossed(request_to_json(request_))) == request_


def test_a_schema_may_be_any_mapping() -> None:
    schema = MappingProxyType({"type": "object", "properties": MappingProxyType({})})
    request = Request(id="x", messages=(), sampling=Sampling(json_schema=schema))

    arrived = request_from_json(crossed(request_to_json(request)))

    assert arrived.sampling.json_schema == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    "reply",
    [ANSWER, Reply.failed(FULL, Failure(kind="context", message="too long", retryable=True))],
    ids=["answer", "failure"],
)
def test_a_reply_survives_the_crossing(reply: Reply) -> None:
    assert reply_from_json(crossed(reply_to_json(reply))) == reply


def test_messages_arrive_in_order_and_whole(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    one.sendall(pack({"n": 1}) + pack({"n": 2, "text": "é"}))

    assert receive_frame(other) == {"n": 1}
    assert receive_frame(other) == {"n": 2, "text": "é"}


@pytest.mark.parametrize("cut", [0, 2, 4, 7])
def test_a_message_cut_short_reads_as_the_end(
    ends: tuple[socket.socket, socket.socket], cut: int
) -> None:
    one, other = ends
    one.sendall(pack({"n": 1})[:cut])
    one.close()

    assert receive_frame(other) is None


async def test_the_waiting_reader_sees_the_same_messages_and_the_end() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(pack({"n": 1}) + pack({"n": 2})[:6])
    reader.feed_eof()

    assert await read_frame(reader) == {"n": 1}
    assert await read_frame(reader) is None


async def test_a_length_beyond_all_reason_is_an_error_rather_than_memory() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(struct.pack("!I", 2**32 - 1))

    with pytest.raises(ValueError, match="larger than the limit"):
        await read_frame(reader)


def test_a_frame_must_hold_an_object() -> None:
    with pytest.raises(ValueError, match="JSON object"):
        unpack(b"[1]")
