"""The scripted engine says its lines, and fails as it is told."""

import asyncio
import json
import math
from pathlib import Path

import pytest

from expertmix.agents.engines import EngineError, Reply, Request, Sampling, ToolCall
from expertmix.agents.engines.scripted import GARBAGE, Faults, Line, ScriptedEngine
from expertmix.retrieval import InputError


def ask(
    id: str,
    text: str = "two words",
    *,
    question: str | None = None,
    sampling: Sampling | None = None,
    options: tuple[str, ...] = (),
) -> Request:
    return Request(
        id=id,
        messages=({"role": "user", "content": text},),
        question_id=question,
        sampling=sampling or Sampling(),
        options=options,
    )


async def started(engine: ScriptedEngine) -> ScriptedEngine:
    await engine.start()
    return engine


def kind(reply: Reply) -> str | None:
    return None if reply.failure is None else reply.failure.kind


async def test_a_line_is_found_by_question_then_by_the_star_and_else_it_is_missing() -> None:
    engine = await started(ScriptedEngine("ada", {"q1": "one", "*": "any"}))
    bare = await started(ScriptedEngine("bob", {"q1": "one"}))
    replies = await engine.generate([ask("r1", question="q1"), ask("q1"), ask("q2")])
    assert [reply.text for reply in replies] == ["one", "one", "any"]
    [reply] = await bare.generate([ask("q2")])
    assert reply.failure is not None
    assert reply.failure.kind == "missing"
    assert "'q2'" in reply.failure.message


async def test_a_list_of_lines_is_taken_by_the_sample_in_the_request_id() -> None:
    engine = await started(ScriptedEngine("ada", {"gsm#7": ["a", "b", "c"]}))
    ids = ["gsm#7", "gsm#7#1", "gsm#7/2", "gsm#7:3", "other"]
    replies = await engine.generate([ask(id, question="gsm#7") for id in ids])
    assert [reply.text for reply in replies] == ["a", "b", "c", "a", "a"]


async def test_a_function_sees_the_request_and_its_error_is_one_failure() -> None:
    def script(request: Request) -> str:
        return f"{1 / len(request.messages[0]['content'])}"

    engine = await started(ScriptedEngine("ada", script))
    replies = await engine.generate([ask("a", "x"), ask("b", ""), ask("c", "xx")])
    assert [reply.text for reply in replies] == ["1.0", "", "0.5"]
    assert [kind(reply) for reply in replies] == [None, "engine", None]


async def test_stop_strings_and_max_tokens_end_an_answer() -> None:
    engine = await started(ScriptedEngine("ada", {"*": "one two STOP three"}))
    stopped = ask("a", sampling=Sampling(stop=("STOP",)))
    cut = ask("b", sampling=Sampling(max_tokens=3, logprobs=1))
    first, second = await engine.generate([stopped, cut])
    assert (first.text, first.finish, first.usage.completion_tokens) == ("one two ", "stop", 2)
    assert (second.text, second.finish) == ("one two STOP", "length")
    assert [token.token for token in second.logprobs] == ["one", "two", "STOP"]


async def test_a_prompt_longer_than_the_window_fails_and_a_long_answer_is_cut() -> None:
    engine = await started(ScriptedEngine("ada", {"*": "a b c d e"}, context_length=5))
    long, fits = await engine.generate([ask("a", "1 2 3 4 5"), ask("b", "1 2 3")])
    assert kind(long) == "context"
    assert (fits.text, fits.finish) == ("a b", "length")
    assert (fits.usage.prompt_tokens, fits.usage.completion_tokens) == (3, 2)


@pytest.mark.parametrize("line", [" Paris ", "B"])
async def test_the_line_names_the_likeliest_option_by_text_or_letter(line: str) -> None:
    engine = await started(ScriptedEngine("ada", {"*": line}))
    [reply] = await engine.generate([ask("a", options=(" Rome", " Paris", " Bern"))])
    logprobs = [score.logprob for score in reply.scores]
    assert max(range(3), key=logprobs.__getitem__) == 1
    assert sum(map(math.exp, logprobs)) == pytest.approx(1.0)
    assert reply.text == ""


async def test_a_line_that_names_no_option_prefers_none() -> None:
    engine = await started(ScriptedEngine("ada", {"*": "who knows"}))
    [reply] = await engine.generate([ask("a", options=("x", "y"))])
    assert {score.logprob for score in reply.scores} == {math.log(0.5)}


async def test_a_load_failure_is_an_engine_error_and_counts_no_load() -> None:
    engine = ScriptedEngine("ada", {}, faults=Faults(load="not enough memory"))
    with pytest.raises(EngineError, match="not enough memory") as caught:
        await engine.start()
    assert caught.value.failure.kind == "load"
    assert engine.loads == 0


async def test_concurrent_starts_load_once() -> None:
    engine = ScriptedEngine("ada", {}, load_seconds=0.01, context_length=9, memory_bytes=7)
    first, second = await asyncio.gather(engine.start(), engine.start())
    assert first is second
    assert (first.seconds, first.context_length, first.memory_bytes) == (0.01, 9, 7)
    assert engine.loads == 1


async def test_a_dead_engine_fails_the_rest_of_its_batch_and_every_later_call() -> None:
    engine = await started(ScriptedEngine("ada", {"*": "x"}, faults=Faults(die_after=2)))
    replies = await engine.generate([ask(str(n)) for n in range(4)])
    later = await engine.generate([ask("later")])
    assert [kind(reply) for reply in [*replies, *later]] == [None, None, *["engine"] * 3]


async def test_single_questions_fail_stay_empty_or_turn_to_garbage() -> None:
    faults = Faults(fail_ids={"a"}, empty_ids={"b"}, garbage_ids={"c"})
    engine = await started(ScriptedEngine("ada", {"*": "fine"}, faults=faults))
    replies = await engine.generate([ask(id) for id in "abcd"])
    assert [kind(reply) for reply in replies] == ["engine", None, None, None]
    assert [reply.text for reply in replies] == ["", "", GARBAGE, "fine"]


async def test_a_hanging_question_holds_its_call_but_not_the_replies_of_the_others() -> None:
    engine = await started(ScriptedEngine("ada", {"*": "x"}, faults=Faults(hang_ids={"b"})))
    heard: list[str] = []
    call = asyncio.create_task(
        engine.generate([ask(id) for id in "abc"], lambda reply: heard.append(reply.request_id))
    )
    await asyncio.sleep(0.01)
    assert heard == ["a", "c"]
    assert not call.done()
    await engine.close()
    assert [kind(reply) for reply in await call] == [None, "engine", None]


async def test_latency_per_request_reports_the_fast_ones_first_and_keeps_the_order() -> None:
    engine = await started(
        ScriptedEngine("ada", {"*": "x"}, latency=lambda r: {"slow": 0.02, "fast": 0.001}[r.id])
    )
    heard: list[str] = []
    replies = await engine.generate(
        [ask("slow"), ask("fast")], lambda reply: heard.append(reply.request_id)
    )
    assert heard == ["fast", "slow"]
    assert [reply.request_id for reply in replies] == ["slow", "fast"]


async def test_it_counts_calls_and_remembers_requests_unless_told_not_to() -> None:
    engine = await started(ScriptedEngine("ada", {"*": "x"}))
    quiet = await started(ScriptedEngine("bob", {"*": "x"}, keep_requests=False))
    for each in (engine, quiet):
        await each.generate([ask("a"), ask("b")])
        assert [chunk async for chunk in each.stream(ask("c"))]
    assert [request.id for request in engine.requests] == ["a", "b", "c"]
    assert (engine.calls, quiet.calls, quiet.requests) == (2, 2, [])


async def test_a_stream_comes_word_by_word_and_adds_up() -> None:
    engine = await started(ScriptedEngine("ada", {"*": " one\ntwo  three "}))
    chunks = [chunk async for chunk in engine.stream(ask("a"))]
    assert "".join(chunk.text for chunk in chunks) == " one\ntwo  three "
    assert len(chunks) > 3
    assert chunks[-1].reply is not None
    assert chunks[-1].reply.text == " one\ntwo  three "


async def test_a_script_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "script.json"
    path.write_text(json.dumps({"q1": ["a", "b"], "*": "c"}))
    engine = await started(ScriptedEngine.from_file("ada", path))
    replies = await engine.generate([ask("q1#1", question="q1"), ask("q9")])
    assert [reply.text for reply in replies] == ["b", "c"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no script"),
        ("{", "not JSON"),
        ("[1]", "JSON object"),
        ('{"q": 3}', "'q'"),
        ('{"q": []}', "'q'"),
        ('{"q": ["a", 1]}', "'q'"),
    ],
)
def test_a_bad_script_file_is_one_clear_sentence(
    tmp_path: Path, content: str | None, complaint: str
) -> None:
    path = tmp_path / "script.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=complaint):
        ScriptedEngine.from_file("ada", path)


async def test_a_line_may_hold_calls_and_thoughts() -> None:
    call = ToolCall(id="c", name="add", arguments='{"a": 1}')
    line = Line(text="so be it", tool_calls=(call,), reasoning="hm hm")
    engine = await started(ScriptedEngine("s", lambda _: line))
    [reply] = await engine.generate([ask("q")])
    chunks = [chunk async for chunk in engine.stream(ask("q"))]

    assert (reply.text, reply.tool_calls, reply.reasoning) == ("so be it", (call,), "hm hm")
    assert reply.usage.completion_tokens == 3 + 3 + 2
    assert "".join(chunk.reasoning for chunk in chunks) == "hm hm"
    assert "".join(chunk.text for chunk in chunks) == "so be it"
    assert chunks[-1].reply == reply
