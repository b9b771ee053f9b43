"""The replay engine gives back what was recorded, and says what was not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from expertmix.agents.engines import Reply, Request
from expertmix.agents.engines.replay import ReplayEngine
from expertmix.retrieval import InputError

pa = pytest.importorskip("pyarrow", reason="recordings are parquet tables: pip install pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SHARED = Path(__file__).parents[4] / "shared" / "data"
Write = Callable[..., Path]


def outcome(question: str, predicted: str | None, **other: Any) -> dict[str, Any]:
    row = {"question_id": question, "model": "ada", "predicted": predicted, "output_chars": 400}
    return row | {"answered": predicted is not None, "correct": False} | other


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(outcomes: list[dict[str, Any]], texts: list[tuple[str, str, str]] = []) -> Path:  # noqa: B006
        pq.write_table(pa.Table.from_pylist(outcomes), tmp_path / "outcomes.parquet")
        if texts:
            rows = [{"question_id": q, "model": m, "output_text": t} for q, m, t in texts]
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / "outputs_dev.parquet")
        return tmp_path

    return write


async def replies_of(table: Path, *questions: str | None, model: str = "ada") -> list[Reply]:
    engine = ReplayEngine("replay", table, model)
    await engine.start()
    requests = [
        Request(id=f"r{n}", messages=({"role": "user", "content": "?"},), question_id=question)
        for n, question in enumerate(questions)
    ]
    replies = await engine.generate(requests)
    await engine.close()
    return replies


async def test_an_answer_without_a_text_is_spelled_out(write: Write) -> None:
    table = write([outcome("1", "B"), outcome("2", "42"), outcome("3", "C", model="bob")])
    letter, number = await replies_of(table, "1", "2")
    assert (letter.text, number.text) == ("Answer: (B)", "Answer: 42")
    assert letter.usage.completion_tokens == 100
    assert letter.usage.prompt_tokens == 0


async def test_a_recorded_text_is_given_back_and_a_cut_one_gets_its_answer(write: Write) -> None:
    table = write(
        [outcome("1", "B", output_chars=5), outcome("2", "C", output_chars=900)],
        [("1", "ada", "So, B"), ("2", "ada", "It follows"), ("1", "bob", "No, D")],
    )
    whole, cut = await replies_of(table, "1", "2")
    assert whole.text == "So, B"
    assert cut.text == "It follows […]\n\nAnswer: (C)"
    assert (whole.usage.completion_tokens, cut.usage.completion_tokens) == (2, 225)


async def test_a_question_left_unanswered_is_empty_and_an_unrecorded_one_is_missing(
    write: Write,
) -> None:
    table = write(
        [outcome("1", None), outcome("2", None, answered=True, output_chars=None)],
        [("1", "ada", "I wonder")],
    )
    silent, unsaid, unknown, no_question = await replies_of(table, "1", "2", "77", None)
    assert (silent.text, silent.failure) == ("", None)
    assert unsaid.failure is not None
    assert unsaid.failure.kind == "missing"
    assert unknown.failure is not None
    assert unknown.failure.kind == "missing"
    assert "77" in unknown.failure.message
    assert '"ada"' in unknown.failure.message
    assert no_question.failure is not None
    assert "r3" in no_question.failure.message


async def test_whole_number_ids_and_missing_columns_do_not_matter(write: Write) -> None:
    rows = [
        {"question_id": 7, "model": "ada", "predicted": "A"},
        {"question_id": 8, "model": "ada", "predicted": None},
    ]
    answered, silent = await replies_of(write(rows), "7", "8")
    assert (answered.text, silent.text) == ("Answer: (A)", "")
    assert silent.failure is None


async def test_scores_of_options_are_refused(write: Write) -> None:
    engine = ReplayEngine("replay", write([outcome("1", "A")]), "ada")
    await engine.start()
    request = Request(id="r", messages=(), question_id="1", options=("x", "y"))
    [reply] = await engine.generate([request])
    assert reply.failure is not None
    assert reply.failure.kind == "refused"


async def test_an_unknown_model_is_answered_with_the_known_ones(write: Write) -> None:
    table = write([outcome("1", "A", model=f"m{n:02}") for n in range(30)])
    with pytest.raises(InputError, match=r'no model "eve"; it has m00, m01.* and 22 more$'):
        await ReplayEngine("replay", table, "eve").start()


async def test_a_folder_without_a_table_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no recorded answers at .*outcomes\.parquet"):
        await ReplayEngine("replay", tmp_path, "ada").start()
    (tmp_path / "outcomes.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="not a parquet file"):
        await ReplayEngine("replay", tmp_path, "ada").start()


async def test_a_table_without_a_needed_column_names_it(write: Write) -> None:
    with pytest.raises(InputError, match="lacks the column predicted; it has model, question_id"):
        await ReplayEngine("replay", write([{"question_id": "1", "model": "a"}]), "a").start()


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data beside the repository")
@pytest.mark.parametrize("folder", ["mmlu_pro", "gsm8k_models"])
async def test_real_recordings_replay_for_every_question_of_a_model(folder: str) -> None:
    table = SHARED / folder
    rows = pq.read_table(table / "outcomes.parquet").to_pylist()
    model = str(rows[0]["model"])
    mine = [row for row in rows if row["model"] == model]
    replies = await replies_of(table, *(row["question_id"] for row in mine), model=model)
    assert not [reply.failure for reply in replies if reply.failure is not None]
    for row, reply in zip(mine, replies, strict=True):
        assert bool(reply.text) == row["answered"]


async def test_tools_are_refused_unless_none_is_to_be_called(write: Write) -> None:
    engine = ReplayEngine("replay", write([outcome("1", "B")]), "ada")
    await engine.start()
    asked = Request(id="r", messages=(), question_id="1", tools=({"name": "add"},))
    [refused, answered] = await engine.generate([asked, replace(asked, tool_choice="none")])
    await engine.close()

    assert refused.failure is not None
    assert (refused.failure.kind, "tool calls" in refused.failure.message) == ("refused", True)
    assert answered.text == "Answer: (B)"
