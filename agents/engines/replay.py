"""Recorded answers of real models, so that recruiting and merging can be studied without a GPU.

A table is a folder with `outcomes.parquet` (`question_id`, `model`, `predicted`, and where known
`answered`, `output_chars`) and, where texts were kept, `outputs*.parquet` (`question_id`, `model`,
`output_text`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ...retrieval import InputError
from .base import Chunk, Failure, Load, Reply, Request, Usage
from .wording import name_some

__all__ = ["ReplayEngine"]

CHARS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class _Record:
    text: str | None
    """None if nothing was kept but whether the answer was right."""
    tokens: int


class ReplayEngine:
    """Answers with what one model once answered to the same question.

    The text is the recorded one. Where only the answer was recorded it is `Answer: (B)` (or
    `Answer: 42`); a recorded text that was cut short gets that line as its end, since it lost its
    own. A question that the model left without an answer gets an empty text, and one that is not
    recorded fails with kind `missing`. Sampling is ignored; nothing but the question's id counts.

    Usage is an estimate: one completion token per four recorded characters (`output_chars`); the
    tokens of the original prompts are not known and count as 0.

    Args:
        name: For messages.
        table: The folder.
        model: The model's name as the table spells it.
    """

    def __init__(self, name: str, table: str | Path, model: str) -> None:
        self.name = name
        self._table = Path(table)
        self._model = model
        self._records: dict[str, _Record] = {}
        self._load: Load | None = None
        self._starting = asyncio.Lock()
        self._closed = False

    async def start(self) -> Load:
        """Read the records of this engine's model; a second call returns the first one's answer.

        Raises:
            InputError: no such table or model, or pyarrow is not installed.
        """
        async with self._starting:
            if self._load is None:
                began = time.perf_counter()
                self._records, size = await asyncio.to_thread(
                    _read_records, self._table, self._model
                )
                self._load = Load(seconds=time.perf_counter() - began, memory_bytes=size)
        return self._load

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        """Look the answers up; replies come in the order of the requests."""
        await asyncio.sleep(0)  # a point at which the call can be cancelled
        replies: list[Reply] = []
        for request in requests:
            replies.append(self._reply(request))
            if on_reply is not None:
                on_reply(replies[-1])
        return replies

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """The recorded text as one piece."""
        [reply] = await self.generate([request])
        if reply.text:
            yield Chunk(text=reply.text)
        yield Chunk(reply=reply)

    async def close(self) -> None:
        """Forget the records. Safe to call twice."""
        self._closed = True
        self._records = {}

    def _reply(self, request: Request) -> Reply:
        failure = self._refusal(request)
        if failure is not None:
            return Reply.failed(request, failure)
        record = self._records.get(request.question_id or "")
        if record is None or record.text is None:
            lack = "holds no record of" if record is None else "does not say what was answered by"
            message = (
                f'{self._table} {lack} model "{self._model}" on question {request.question_id}'
            )
            return Reply.failed(request, Failure(kind="missing", message=message))
        usage = Usage(completion_tokens=record.tokens)
        return Reply(request_id=request.id, text=record.text, usage=usage)

    def _refusal(self, request: Request) -> Failure | None:
        if self._load is None or self._closed:
            message = f'engine "{self.name}" is not running: not started, or closed'
            return Failure(kind="engine", message=message)
        if request.options:
            message = "a recording holds answers, not the scores of options; ask for a written one"
            return Failure(kind="refused", message=message)
        if request.tools and request.tool_choice != "none":
            message = "a recording holds answers, not tool calls; ask without tools"
            return Failure(kind="refused", message=message)
        if request.question_id is None:
            message = f'request "{request.id}" has no question_id to look up in {self._table}'
            return Failure(kind="missing", message=message)
        return None


def _read_records(table: Path, model: str) -> tuple[dict[str, _Record], int]:
    """The records of one model by question id, and the bytes they were read from."""
    outcomes, size = _read_model(table / "outcomes.parquet", model, ("predicted",))
    if not outcomes:
        known = name_some(_known_models(table / "outcomes.parquet"))
        raise InputError(f'{table} has no model "{model}"; it has {known}')
    texts: dict[str, str] = {}
    for path in sorted(table.glob("outputs*.parquet")):
        outputs, read = _read_model(path, model, ("output_text",))
        size += read
        for row in outputs:
            if row["output_text"] is not None:
                texts.setdefault(str(row["question_id"]), row["output_text"])
    records: dict[str, _Record] = {}
    for row in outcomes:
        question = str(row["question_id"])
        records.setdefault(question, _record(row, texts.get(question)))
    return records, size


def _record(row: dict[str, Any], text: str | None) -> _Record:
    predicted: str | None = row["predicted"]
    chars = _count_chars(row.get("output_chars"), text)
    tokens = math.ceil(chars / CHARS_PER_TOKEN)
    if row.get("answered", predicted is not None or text is not None) is False:
        return _Record("", tokens)
    if predicted is None:
        return _Record(text, tokens)
    is_letter = len(predicted) == 1 and predicted.isalpha()
    answer = f"Answer: ({predicted})" if is_letter else f"Answer: {predicted}"
    if text is None:
        return _Record(answer, tokens)
    return _Record(text if len(text) >= chars else f"{text} […]\n\n{answer}", tokens)


def _count_chars(value: object, text: str | None) -> int:
    if isinstance(value, int | float) and math.isfinite(value) and value >= 0:
        return int(value)
    return len(text or "")


def _read_model(path: Path, model: str, needed: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """The rows of one model, with the columns that matter here, and the bytes they take."""
    columns = _columns(path)
    missing = [name for name in ("question_id", "model", *needed) if name not in columns]
    if missing:
        raise InputError(f"{path} lacks the column {missing[0]}; it has {name_some(columns)}")
    from pyarrow import parquet

    wanted = ["question_id", *needed]
    wanted += [name for name in ("answered", "output_chars") if name in columns]
    rows = parquet.read_table(path, columns=wanted, filters=[("model", "==", model)])
    return cast("list[dict[str, Any]]", rows.to_pylist()), int(rows.nbytes)


def _known_models(path: Path) -> set[str]:
    from pyarrow import parquet

    column = parquet.read_table(path, columns=["model"]).column("model")
    return {str(model) for model in column.unique().to_pylist()}


def _columns(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(
            f"no recorded answers at {path}: a table is a folder with outcomes.parquet"
        )
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"reading {path} needs pyarrow: pip install pyarrow") from None
    try:
        return list(parquet.read_schema(path).names)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a parquet file ({error})") from None
