"""The plain-Python face: questions in, answers with reasons out."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import itertools
import math
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, cast

from ..agents import Adaptive, Catalog, Cost, Policy, Pool, PoolEvent, Profile, SkillExtractor
from ..retrieval import InputError, Question
from .build import create_graph
from .cancelling import cancel_once
from .collector import few_collections
from .resources import make_resources
from .result import Result, Solution
from .state import Resources

__all__ = [
    "Questions",
    "as_questions",
    "asolve",
    "make_row",
    "open_pool",
    "run_batch",
    "run_here",
    "solve",
    "solve_many",
]

Questions = str | Question | Mapping[str, Any] | Iterable[str | Question | Mapping[str, Any]]


def solve(questions: Questions, pool: Pool | Catalog | str | Path, **settings: Any) -> Result:
    """Answer questions with a panel of experts. Works in scripts and in notebooks alike.

    Args:
        questions: A text, a `Question`, a mapping with the keys of a question, or several of them.
        pool: A pool file, a catalog, or an open `Pool` (which stays open).
        settings: See `asolve`.

    Example:
        >>> from expertmix.graph import solve
        >>> result = solve("What is 12 + 30?", "examples/pool.yaml", k=2)  # doctest: +SKIP
        >>> result[0].answer  # doctest: +SKIP
        '42'
    """
    return run_here(asolve(questions, pool, **settings))


async def asolve(
    questions: Questions,
    pool: Pool | Catalog | str | Path,
    *,
    k: int | None = None,
    profile: Profile | str | Path | None = None,
    extractor: SkillExtractor | None = None,
    policy: Policy = "skill",
    adaptive: Adaptive | float | None = None,
    cost: Cost | None = None,
    merging: Literal["posterior", "vote"] = "posterior",
    aggregator: str | None = None,
    abstain_below: float = 0.0,
    experts: Sequence[str] = (),
    samples: int = 1,
    seed: int = 0,
    watch: Callable[[PoolEvent], None] | None = None,
) -> Result:
    """Answer questions with a panel of experts.

    Args:
        questions: As for `solve`.
        pool: As for `solve`.
        k: Experts per question; 3, or the whole pool where it is smaller.
        profile: Who is good at what (`expertmix profile`); without one, experts are drawn at random.
        extractor: Tells which skills a question needs; default: what the pool file asks for.
        policy: How recruits are chosen, see `expertmix.agents.Policy`.
        adaptive: Mean number of calls per question, or an `Adaptive`: few experts are asked about every
            question, and more only where that is likely to help. Needs a profile.
        cost: What calls cost, for the policy `skill` and for adaptive panels.
        merging: `posterior` gives the answer that is likeliest by what the profile says about those who
            gave it (without a profile: `vote`); `vote` the most common answer.
        aggregator: Expert that merges drafts where the panel disagrees; `best` takes the one that the
            profile's benchmark of aggregators prefers; default: the pool file's, or none.
        abstain_below: Confidence below which a question gets no answer.
        experts: Aliases to recruit from; default: all.
        samples: Answers per expert and question.
        seed: Of everything that is drawn.
        watch: Called with every `PoolEvent` meanwhile, from the pool's thread: a progress bar, a
            `Timeline().add`, metrics.

    Raises:
        InputError: questions, pool, profile or settings that do not fit together, in one sentence.
    """
    batch = as_questions(questions)
    async with open_pool(pool, watch) as ready:
        before = copy.deepcopy(ready.ledger)
        resources = await asyncio.to_thread(
            make_resources,
            ready,
            k=k,
            profile=profile,
            extractor=extractor,
            policy=policy,
            adaptive=adaptive,
            cost=cost,
            merging=merging,
            aggregator=aggregator,
            abstain_below=abstain_below,
            experts=experts,
            samples=samples,
            seed=seed,
        )
        rows = await run_batch(batch, resources)
        return Result(rows, ready.ledger.since(before).to_json())


async def solve_many(
    questions: Questions, resources: Resources, *, window: int = 4096
) -> AsyncIterator[list[Solution]]:
    """Answer questions window by window, so that finished windows can be kept.

    A window is one pass of the graph: where not all models fit into memory, each pass loads each
    model once, so a window should be large. What is asked again after an interruption is found in the
    pool's answer store and costs no call.

    Yields:
        The solutions of each window, in the questions' order.
    """
    batch = as_questions(questions)
    for start in range(0, len(batch), window):
        yield await run_batch(batch[start : start + window], resources)


async def run_batch(questions: Sequence[Question], resources: Resources) -> list[Solution]:
    """One pass of the graph over a batch. Cancelled, it has ended when this ends."""
    return await cancel_once(_run_batch(questions, resources))


async def _run_batch(questions: Sequence[Question], resources: Resources) -> list[Solution]:
    with few_collections(len(questions)):
        state = await create_graph().ainvoke(
            {"questions": {question.id: question.to_json() for question in questions}},
            context=resources,
        )
        return [Solution(question=q, row=make_row(q, state)) for q in questions]


def as_questions(questions: Questions) -> list[Question]:
    """Whatever a caller may mean by questions, as a list of them.

    Raises:
        InputError: none at all, one without text, or two with the same id.
    """
    items: list[str | Question | Mapping[str, Any]] = (
        [cast("str | Question | Mapping[str, Any]", questions)]
        if isinstance(questions, str | Question | Mapping)
        else list(questions)
    )
    batch: list[Question] = []
    for number, item in enumerate(items, 1):
        if isinstance(item, Question):
            batch.append(item)
            continue
        row: Mapping[str, Any] = {"text": item} if isinstance(item, str) else item
        try:
            batch.append(Question.from_json(row, default_id=f"q{number}"))
        except InputError as error:
            raise InputError(f"question {number}: {error}") from None
    if not batch:
        raise InputError("there are no questions to answer")
    ids = [question.id for question in batch]
    if len(set(ids)) != len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise InputError(f'two questions have the id "{twice}"; ids must differ')
    return batch


@asynccontextmanager
async def open_pool(
    pool: Pool | Catalog | str | Path, watch: Callable[[PoolEvent], None] | None = None
) -> AsyncGenerator[Pool]:
    """The pool itself if it is one, else one that is closed afterwards; watched meanwhile."""
    if isinstance(pool, Pool):
        pool.open()
        end = pool.watch(watch) if watch is not None else None
        try:
            yield pool
        finally:
            if end is not None:
                end()
        return
    catalog = pool if isinstance(pool, Catalog) else Catalog.load(pool)
    # Nobody else asks it: a batch.
    async with Pool(catalog, patience=math.inf, on_event=watch) as made:
        yield made


def make_row(
    question: Question,
    state: Mapping[str, Any],
    experts: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The line of `answers.jsonl`.

    Args:
        question: Which.
        state: What the graph gave.
        experts: Who answered, why and what; by default the recruits with their samples.
    """
    verdict = state["verdicts"][question.id]
    if experts is None:
        experts = _list_answers(question, state)
    return {
        "id": question.id,
        "answer": verdict["answer"],
        "confidence": verdict["confidence"],
        "method": verdict["method"],
        "abstained": verdict["abstained"],
        "skills": state["skills"].get(question.id, {}),
        "experts": list(experts),
        "votes": verdict["votes"],
        "dissent": verdict["dissent"],
        "chances": verdict["chances"],
        "unread": verdict["unread"],
        "missing": verdict["missing"],
        "note": verdict["note"],
        "aggregation": verdict["text"],
        "usage": {
            name: sum(row[name] for row in (*experts, verdict))
            for name in ("prompt_tokens", "completion_tokens")
        },
    }


def _list_answers(question: Question, state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each recruit with each of its answers."""
    experts: list[dict[str, Any]] = []
    for recruited in state["recruits"].get(question.id, []):
        answers = state["answers"].get(recruited["expert"], {})
        for sample in itertools.count():
            answer = answers.get(f"{question.id}#{sample}")
            if answer is None:
                break
            experts.append({**recruited, **answer})
    return experts


def run_here(work: Any) -> Any:
    """Run a coroutine to its end, in a thread of its own where a loop already runs (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    started: Future[asyncio.AbstractEventLoop] = Future()

    async def told() -> Any:
        started.set_result(asyncio.get_running_loop())
        return await work

    with ThreadPoolExecutor(1, "expertmix-solve") as thread:
        # The caller's context goes along: tracing and callbacks are kept there.
        outcome = thread.submit(contextvars.copy_context().run, asyncio.run, told())
        try:
            return outcome.result()
        except KeyboardInterrupt:  # only the thread's loop can stop what it runs
            loop = started.result()
            loop.call_soon_threadsafe(_cancel_all, loop)
            raise


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
