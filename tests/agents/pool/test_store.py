"""What was answered is found again, by exactly what was asked."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from expertmix.agents import AnswerStore
from expertmix.agents.engines import (
    Failure,
    OptionScore,
    Reply,
    Request,
    Sampling,
    TokenLogprob,
    Usage,
)
from expertmix.retrieval import InputError

REQUEST = Request(id="q1#0", messages=({"role": "user", "content": "Hi?"},), question_id="q1")
REPLY = Reply(
    request_id="q1#0",
    text="Hello \u202e\x00",
    tool_calls=({"id": "c1", "name": "add", "arguments": "{}"},),
    reasoning="Hm.",
    finish="length",
    usage=Usage(prompt_tokens=3, completion_tokens=1, cached_tokens=2),
    logprobs=(TokenLogprob(token="H", logprob=-0.5, top=(("H", -0.5), ("J", -1.0))),),
    scores=(OptionScore(logprob=-2.0, tokens=3),),
    details={"remix": {"verdict": "kept", "curve": [0.5]}},
)


def test_a_reply_comes_back_whole_after_reopening(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "deep" / "r.sqlite")
    store.keep("weights", REQUEST, REPLY)
    store.close()
    found = AnswerStore(store.path).find("weights", replace(REQUEST, id="again#0"))
    assert found == replace(REPLY, request_id="again#0")
    store.close()


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, messages=({"role": "user", "content": "Ho?"},)),
        replace(REQUEST, sampling=Sampling(seed=1)),
        replace(REQUEST, sampling=Sampling(temperature=0.7)),
        replace(REQUEST, adapter="a"),
        replace(REQUEST, options=("x", "y")),
        replace(REQUEST, question_id="q2"),
        replace(REQUEST, tools=({"name": "add"},)),
    ],
)
def test_whatever_changes_the_answer_changes_the_key(tmp_path: Path, other: Request) -> None:
    store = AnswerStore(tmp_path / "r.sqlite")
    store.keep("weights", REQUEST, REPLY)
    assert store.find("weights", other) is None
    assert store.find("other weights", REQUEST) is None
    store.close()


def test_only_a_failure_that_stays_is_kept(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "r.sqlite")
    store.keep("w", REQUEST, Reply.failed(REQUEST, Failure(kind="engine", message="died")))
    assert len(store) == 0
    too_long = Reply.failed(REQUEST, Failure(kind="context", message="too long"))
    store.keep("w", REQUEST, too_long)
    assert store.find("w", REQUEST) == too_long
    store.close()


def test_a_damaged_store_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    path.write_bytes(b"no database at all, " * 100)
    with pytest.raises(InputError, match=r"cannot keep answers in .*r\.sqlite"):
        AnswerStore(path).find("w", REQUEST)


def test_what_was_kept_survives_a_crash(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "r.sqlite")
    store.keep("w", REQUEST, REPLY)  # no close: the process is gone
    with sqlite3.connect(store.path) as other:
        assert other.execute("SELECT count(*) FROM replies").fetchone() == (1,)
    other.close()
    store.close()


def test_requests_without_tools_keep_the_keys_of_older_stores(tmp_path: Path) -> None:
    sampling = Sampling(temperature=0.7, seed=3, stop=("x",), json_schema={"type": "object"})
    store = AnswerStore(tmp_path / "r.sqlite")
    store.keep("weights", replace(REQUEST, sampling=sampling, tool_choice="none"), REPLY)
    [(key,)] = store.open().execute("SELECT key FROM replies").fetchall()
    store.close()

    assert key == "2d2312f02a0625b9e994d0175391582500eaea4af33727515a1baa56e34bcf5c"


def test_tools_and_the_choice_among_them_make_the_key(tmp_path: Path) -> None:
    asked = replace(REQUEST, tools=({"name": "add"},))
    store = AnswerStore(tmp_path / "r.sqlite")
    store.keep("w", asked, REPLY)
    assert store.find("w", asked) == REPLY
    assert store.find("w", replace(asked, tool_choice="required")) is None
    store.close()


def test_replies_of_older_stores_have_no_calls(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "r.sqlite")
    store.keep("w", REQUEST, REPLY)
    with store.open() as connection:
        connection.execute(
            "UPDATE replies SET reply = json_remove(reply, '$.tool_calls', '$.reasoning')"
        )
    assert store.find("w", REQUEST) == replace(REPLY, tool_calls=(), reasoning="")
    store.close()
