"""Building a profile: experts answer labelled questions, and only what is missing is asked."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..retrieval import InputError, Question, fingerprint
from ..retrieval.references import normal_text
from .answers import is_correct, read_answer
from .outcomes import SkillWeights
from .pool import Pool
from .profile import Profile
from .reason import Answer, build_requests, read_reply, reason_prompt_hash
from .records import ExpertRecord, Outcome, Reference, hash_references

__all__ = ["Distinct", "build_profile", "check_gold", "drop_duplicates", "grade_answers"]

WORDS = re.compile(r"[a-zA-Z][a-zA-Z\s/-]+")
EITHER_NUMBER = re.compile(r"[+-]?[\d.,]+(?:\s+or\s+[+-]?[\d.,]+)+")


@dataclass(frozen=True, slots=True)
class Distinct:
    """References without duplicates."""

    questions: tuple[Question, ...]
    """In the order in which they were given."""
    dropped: Mapping[str, str]
    """Id of each dropped question → id of the one that stands for it."""
    contradictory: int = 0
    """How many of the dropped ones had another gold answer."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to tell about it: nothing, or a sentence."""
        if not self.dropped:
            return ()
        others = f", {self.contradictory} of them with another gold answer" * bool(
            self.contradictory
        )
        return (
            f"{len(self.dropped)} duplicate references were dropped{others}: "
            f"{_list([f'{left} is {kept}' for left, kept in sorted(self.dropped.items())])}",
        )


async def build_profile(
    pool: Pool,
    references: Sequence[Question],
    skills: Mapping[str, SkillWeights],
    *,
    experts: Sequence[str] | None = None,
    samples: int = 1,
    seed: int = 0,
    known: Profile | None = None,
    extractor: str = "",
) -> Profile:
    """Run experts over the reference set and write down every outcome (symbolic-moe.md §1.4).

    What the pool's answer store knows is not asked again; without a store, what `known` holds of the
    same expert, question, sample, seed and prompts is not. Outcomes in `known` of experts that are not
    asked now, and of further samples, stay; those of questions that are not among the references go.

    Args:
        pool: Asked with the same prompts and sampling as when it answers.
        references: Labelled questions; duplicates are dropped, see `drop_duplicates`.
        skills: Reference id to its skills, from the extractor that will also see the questions.
        experts: Aliases to ask; all by default.
        samples: Answers of each expert to each reference.
        seed: Of the samples.
        known: An earlier profile, to grow from.
        extractor: What told the skills, in words.

    Raises:
        InputError: there are no references, one has no gold or a malformed one, an expert is unknown
            or its weights are not there.
    """
    if not references:
        raise InputError("there are no references to profile against; give labelled questions")
    if samples < 1:
        raise InputError(f"samples is {samples}; every expert answers at least once")
    distinct = drop_duplicates(references, prefer=() if known is None else known.questions)
    questions = distinct.questions
    rows = {q.id: _make_reference(q, skills.get(q.id, {})) for q in questions}
    aliases = list(pool.catalog) if experts is None else list(dict.fromkeys(experts))
    for alias in aliases:
        _ = pool.catalog[alias]
    usable, remarks = _choose_known(known, seed, aliases)
    kept = [] if usable is None else _keep(usable, rows)
    given = await asyncio.gather(
        *(_ask(pool, alias, questions, usable, kept, samples, seed) for alias in aliases)
    )
    records = {} if usable is None else dict(usable.experts)
    outcomes = [outcome for outcome in kept if outcome.expert not in aliases]
    for alias, (record, found) in zip(aliases, given, strict=True):
        records[alias] = record
        outcomes += found
    return Profile(
        references=hash_references(rows.values()),
        prompts=reason_prompt_hash(),
        seed=seed,
        extractor=extractor,
        experts=records,
        questions=rows,
        outcomes=tuple(outcomes),
        remarks=(*distinct.remarks, *remarks),
    )


def drop_duplicates(references: Iterable[Question], prefer: Collection[str] = ()) -> Distinct:
    """Keep one of each question: the same text but for case and punctuation, the same set of options.

    Of several, one whose id is in `prefer` stays, else the one with the smallest id, so that neither
    the order of the references matters nor a profile that grows loses what it knows.

    Raises:
        InputError: a reference has no gold answer or a malformed one, or two have the same id.
    """
    given = list(references)
    first: dict[tuple[str, ...], Question] = {}
    seen: set[str] = set()
    for question in sorted(given, key=lambda q: (q.id not in prefer, q.id)):
        check_gold(question)
        if question.id in seen:
            raise InputError(f'two references have the id "{question.id}"; ids must differ')
        seen.add(question.id)
        first.setdefault(_essence(question), question)
    dropped = {q.id: first[_essence(q)].id for q in given if first[_essence(q)].id != q.id}
    contradictory = sum(
        q.id in dropped and _gold_text(q) != _gold_text(first[_essence(q)]) for q in given
    )
    return Distinct(tuple(q for q in given if q.id not in dropped), dropped, contradictory)


def check_gold(question: Question) -> None:
    """Refuse a gold answer that even the right answer would not equal.

    Each alternative of a gold, given as an answer, must be read and graded as right. For numbers
    `080 or 081` means the same as `080 || 081`: either is right. As the gold of a text question it is
    refused, since a reply would have to say both; so are mere words as the gold of a number question.

    Raises:
        InputError: the question has no gold, or one that nothing can match; names the question.
    """
    name = f'the reference "{question.id}"'
    if question.gold is None:
        raise InputError(f'{name} has no "gold" answer to profile against')
    either = r"\s*\|\|\s*|\s+or\s+" if question.kind == "number" else r"\s*\|\|\s*"
    golds = re.split(either, question.gold.strip())
    if question.kind == "choice":
        is_sound = len(question.gold) == 1 and question.gold in question.letters
    else:
        is_sound = all(_is_readable(gold, question) for gold in golds)
    if question.kind == "number":
        is_sound &= not any(WORDS.fullmatch(gold) for gold in golds)
    if question.kind == "text":
        is_sound &= not any(EITHER_NUMBER.fullmatch(gold) for gold in golds)
    if not is_sound:
        wanted = {
            "choice": f"one of {', '.join(question.letters)}",
            "number": "a number or an expression, or alternatives as `80 || 81`",
            "text": "a short text that a reply can end with, or alternatives as `80 || 81`",
        }
        raise InputError(
            f"{name} has the malformed gold {question.gold!r}, which no {question.kind} equals; "
            f"write {wanted[question.kind]}"
        )


def grade_answers(answers: Iterable[Answer], questions: Iterable[Question]) -> list[Outcome]:
    """Outcomes of the answers that there are. An unreadable answer is wrong; a failure is left out."""
    asked = {question.id: question for question in questions}
    return [
        Outcome(
            question_id=answer.question_id,
            expert=answer.expert,
            sample=answer.sample,
            # Half a surrogate pair, which a model can well write, is no text that a file could hold.
            answer=None
            if answer.answer is None
            else answer.answer.encode("utf-8", "replace").decode(),
            right=is_correct(answer.answer, asked[answer.question_id]),
            tokens=answer.usage.completion_tokens,
        )
        for answer in answers
        if answer.error is None
    ]


async def _ask(
    pool: Pool,
    alias: str,
    questions: Sequence[Question],
    known: Profile | None,
    kept: Sequence[Outcome],
    samples: int,
    seed: int,
) -> tuple[ExpertRecord, list[Outcome]]:
    """What an expert answers now and has answered before, if it is still the same expert."""
    spec = pool.catalog[alias]
    identity = await asyncio.to_thread(pool.identity, alias)
    before = None if known is None else known.experts.get(alias)
    has_changed = before is None or before.identity != identity
    found = {o.key: o for o in kept if o.expert == alias and not has_changed}
    requests = build_requests(
        questions,
        sampling=spec.sampling.to_sampling(),
        style=spec.style,
        samples=samples,
        seed=seed,
    )
    wanted = {(q.id, alias, sample) for q in questions for sample in range(samples)}
    if pool.store is None:  # otherwise it knows better: its replies are read by today's rules
        requests = [r for r in requests if (r.question_id, alias, _sample(r.id)) not in found]
    account = pool.ledger.account(alias, "profile")
    calls, seconds = account.calls, account.seconds
    replies = await pool.generate(alias, requests, stage="profile")
    asked = {question.id: question for question in questions}
    answers = [
        read_reply(reply, asked[request.question_id or ""], alias)
        for reply, request in zip(replies, requests, strict=True)
    ]
    timed = len(found) if before is not None and before.seconds_per_call and found else 0
    found |= {outcome.key: outcome for outcome in grade_answers(answers, questions)}
    calls, seconds = account.calls - calls, account.seconds - seconds
    earlier = timed * before.seconds_per_call if before is not None else 0.0
    record = ExpertRecord(
        identity=identity,
        seconds_per_call=(earlier + seconds) / max(1, timed + calls),
        failed=len(wanted - found.keys()),
    )
    return record, list(found.values())


def _choose_known(
    known: Profile | None, seed: int, aliases: Collection[str]
) -> tuple[Profile | None, tuple[str, ...]]:
    """The earlier profile if its answers are to the same requests, and what to tell if they are not."""
    if known is None or (known.prompts == reason_prompt_hash() and known.seed == seed):
        return known, ()
    lost = sorted(set(known.experts) - set(aliases))
    if not lost:
        return None, ()
    return None, (
        f"the earlier outcomes of {_list(lost)} were dropped: they were made with other prompts or "
        "another seed",
    )


def _keep(known: Profile, rows: Mapping[str, Reference]) -> list[Outcome]:
    """Earlier outcomes of references that are asked and graded as they were then."""
    same = {qid for qid, row in rows.items() if _is_same(known.questions.get(qid), row)}
    return [outcome for outcome in known.outcomes if outcome.question_id in same]


def _is_same(known: Reference | None, row: Reference) -> bool:
    return known is not None and known.asked == row.asked


def _make_reference(question: Question, skills: SkillWeights) -> Reference:
    ordered = sorted(skills.items(), key=lambda item: (-item[1], item[0]))
    return Reference(
        id=question.id,
        gold=question.gold or "",
        options=len(question.options),
        kind=question.kind,
        skills=dict(ordered),
        content=fingerprint([replace(question, skills=())]),
    )


def _essence(question: Question) -> tuple[str, ...]:
    return normal_text(question.text), *sorted(map(normal_text, question.options))


def _gold_text(question: Question) -> str:
    """The right answer itself: a letter means nothing where options stand in another order."""
    gold = question.gold or ""
    return normal_text(question.options[question.letters.index(gold)] if question.options else gold)


def _is_readable(gold: str, question: Question) -> bool:
    asked = replace(question, gold=gold)
    said = (f"Answer: {gold}", f"Answer: \\boxed{{{gold}}}", gold)
    return bool(gold.strip()) and any(is_correct(read_answer(text, asked), asked) for text in said)


def _sample(request_id: str) -> int:
    return int(request_id.rpartition("#")[2])


def _list(items: Sequence[str], most: int = 5) -> str:
    rest = [f"and {len(items) - most} more"] if len(items) > most else []
    return ", ".join([*items[:most], *rest])
