"""Multiple-choice questions of parquet files, chosen the same way on every machine."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..retrieval import InputError, Question
from ..retrieval.leakage import COMMON_OPTIONS, normal_text

__all__ = ["choose", "find_splits", "leave_out_tested", "read_choices"]


def read_choices(
    path: str | Path,
    *,
    splits: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[Question]:
    """The multiple-choice questions of a parquet file with `question`, `options` and `gold`.

    A column `split` is used where there is one; rows without options are left out.

    Args:
        path: Laid out like the benchmark tables: `id` or `question_id`, `question`, `options`, `gold` (a
            letter) or `gold_index` (from 0), and perhaps `split`.
        splits: Which splits; all by default.
        limit: How many questions at most, chosen by a hash of seed and id: a larger limit keeps those of
            a smaller one.
        seed: Another one chooses others.

    Raises:
        InputError: no such file, or no such questions in it.
    """
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}; give a parquet file of questions.")
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as parquet: {error}") from error
    known = sorted({str(row["split"]) for row in rows if row.get("split") is not None})
    unknown = sorted(set(splits or ()) - set(known))
    if unknown:
        raise InputError(
            f"{path} has no split {unknown[0]!r}; it has {', '.join(known) or 'none'}."
        )
    questions: list[Question] = []
    for number, row in enumerate(rows, 1):
        if not row.get("options") or (splits and str(row.get("split")) not in splits):
            continue
        if not isinstance(row["options"], list):
            raise InputError(
                f"{path}, row {number}: `options` is no list of texts but {type(row['options']).__name__}; "
                "write the options alone, in order."
            )
        # A table may mix multiple choice with other things, which keep their own `kind`.
        fields = {
            "id": row.get("question_id") if row.get("id") is None else row["id"],
            "text": row.get("text") if row.get("question") is None else row["question"],
            "options": row["options"],
            "gold": _find_gold(row),
        }
        try:
            question = Question.from_json(
                {key: value for key, value in fields.items() if value is not None},
                default_id=f"{path.stem}/{number}",
            )
            if question.gold is None:
                raise InputError("it has no gold answer; give a letter in `gold` or `gold_index`")
            questions.append(question)
        except InputError as error:
            raise InputError(f"{path}, row {number}: {error}") from None
    if not questions:
        raise InputError(f"{path} holds no multiple-choice questions of the splits asked for.")
    return choose(questions, limit, seed)


def leave_out_tested(
    references: Sequence[Question], tests: Iterable[Question]
) -> tuple[list[Question], int]:
    """References that are no test question in disguise, and how many were: by id, text or set of options.

    Neighbours are guarded one by one; what is *learnt* from references (settings, a task bias, a prior) must
    not have seen the tests either.
    """
    tested = list(tests)
    ids = {question.id for question in tested}
    texts = {normal_text(question.text) for question in tested}
    sets = Counter(map(_option_set, [*references, *tested]))
    # Options that many questions have (yes, no) betray none.
    telling = {
        _option_set(q) for q in tested if q.options and sets[_option_set(q)] < COMMON_OPTIONS
    }
    kept = [
        question
        for question in references
        if question.id not in ids
        and normal_text(question.text) not in texts
        and _option_set(question) not in telling
    ]
    return kept, len(references) - len(kept)


def _option_set(question: Question) -> frozenset[str]:
    return frozenset(normal_text(option) for option in question.options)


def _find_gold(row: dict[str, Any]) -> Any:
    """The gold letter, from `gold` or, where only that is given, from `gold_index` counted from 0."""
    gold, index = row.get("gold"), row.get("gold_index")
    if gold is None and isinstance(index, int) and 0 <= index < len(row["options"]):
        return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[index]
    return gold


def find_splits(path: str | Path, prefix: str) -> list[str] | None:
    """The splits of a parquet file whose names begin with `prefix`; None, for all, if there are none."""
    import pyarrow.parquet as pq

    try:
        if "split" not in pq.read_schema(path).names:
            return None
        column = pq.read_table(path, columns=["split"])["split"]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as parquet: {error}") from error
    return (
        sorted({str(v) for v in column.unique().to_pylist() if str(v).startswith(prefix)}) or None
    )


def choose(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
    """At most `limit` questions by a hash of seed and id; which ones does not depend on their order."""

    def draw(question: Question) -> tuple[str, str]:
        return hashlib.sha256(f"{seed}\0{question.id}".encode()).hexdigest(), question.id

    return sorted(questions, key=draw)[:limit]
