"""Who is good at what: right and wrong answers per expert and skill over a labelled reference set."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..retrieval import InputError, Question, fingerprint
from .answers import is_correct
from .pool import Pool
from .reason import Answer, build_requests, read_reply, reason_prompt_hash

__all__ = ["ExpertProfile", "Profile", "Tally", "build_profile", "tally_answers"]

FORMAT = 1
PRIOR_STRENGTH = 4.0  # how many answers in a skill weigh as much as everything else is worth


@dataclass(frozen=True, slots=True)
class Tally:
    """Right and wrong answers."""

    right: int = 0
    wrong: int = 0

    @property
    def total(self) -> int:
        """Answers that count."""
        return self.right + self.wrong

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.right + other.right, self.wrong + other.wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertProfile:
    """What is known about one expert."""

    identity: str
    """Revisions, adapter, persona and sampling that the answers came from (`Pool.identity`)."""
    skills: Mapping[str, Tally]
    overall: Tally
    failed: int = 0
    """Requests without a reply. They say nothing about skill and are counted nowhere else."""
    tokens_per_call: float = 0.0
    """Mean generated tokens."""
    seconds_per_call: float = 0.0
    """Mean wall seconds, in the batches of the profiling run."""

    @property
    def strength(self) -> float:
        """Estimated chance to answer any question right: the mean of Beta(right + 1, wrong + 1)."""
        return (self.overall.right + 1) / (self.overall.total + 2)

    def estimate(self, skill: str) -> float:
        """Estimated chance to answer a question of this skill right.

        The skill's own share is shrunk towards `strength` as if that were worth `PRIOR_STRENGTH`
        answers, so that two lucky answers do not make an expert; an unknown skill has just `strength`.
        """
        tally = self.skills.get(skill, Tally())
        return (tally.right + PRIOR_STRENGTH * self.strength) / (tally.total + PRIOR_STRENGTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Profiles of a pool's experts over one reference set, made under one prompt."""

    references: str
    """Fingerprint of the reference set."""
    prompts: str
    """Hash of the prompts that experts were asked with."""
    seed: int
    experts: Mapping[str, ExpertProfile] = field(default_factory=dict[str, ExpertProfile])

    def __getitem__(self, alias: str) -> ExpertProfile:
        try:
            return self.experts[alias]
        except KeyError:
            raise InputError(
                f'the profile does not know the expert "{alias}", only {", ".join(self.experts)}; '
                "run `expertmix profile` again: only the missing calls are made"
            ) from None

    def check(self, pool: Pool, aliases: Iterable[str]) -> None:
        """Refuse to speak for experts that the profile was not made for.

        Raises:
            InputError: an expert is unknown or was changed since, or the prompts were.
        """
        if self.prompts != reason_prompt_hash():
            raise InputError(
                "the profile was made with other prompts than this version asks; "
                "run `expertmix profile` again"
            )
        for alias in aliases:
            if self[alias].identity != pool.identity(alias):
                raise InputError(
                    f'the expert "{alias}" is not the one that was profiled (its weights, adapter, '
                    "persona, style or sampling changed); run `expertmix profile` again"
                )

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON, replacing an older one in one step."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)

    def to_json(self) -> dict[str, Any]:
        """The profile as plain JSON values."""
        return {
            "format": FORMAT,
            "references": self.references,
            "prompts": self.prompts,
            "seed": self.seed,
            "experts": {
                alias: {
                    "identity": expert.identity,
                    "overall": [expert.overall.right, expert.overall.wrong],
                    "skills": {s: [t.right, t.wrong] for s, t in sorted(expert.skills.items())},
                    "failed": expert.failed,
                    "tokens_per_call": round(expert.tokens_per_call, 3),
                    "seconds_per_call": round(expert.seconds_per_call, 6),
                }
                for alias, expert in self.experts.items()
            },
        }

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile file, or `profile.json` in a folder.

        Raises:
            InputError: it is missing, or no profile of this version.
        """
        path = Path(path)
        path = path / "profile.json" if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"no profile at {path}: make one with `expertmix profile`")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise InputError(
                    f"{path} has profile format {content['format']}; this version reads {FORMAT}"
                )
            return cls(
                references=content["references"],
                prompts=content["prompts"],
                seed=content["seed"],
                experts={a: _read_expert(row) for a, row in content["experts"].items()},
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path} is no profile; make one with `expertmix profile`") from None


async def build_profile(
    pool: Pool,
    references: Sequence[Question],
    skills: Mapping[str, Sequence[str]],
    *,
    experts: Sequence[str] | None = None,
    seed: int = 0,
    known: Profile | None = None,
) -> Profile:
    """Run experts over the reference set and count (symbolic-moe.md §1.4).

    With a pool that has an answer store, only what was never asked is asked.

    Args:
        pool: Asked with the same prompts and sampling as when it answers.
        references: Labelled questions.
        skills: Reference id to its skills, from the extractor that will also see the questions.
        experts: Aliases; all by default.
        seed: Of the samples.
        known: An earlier profile: what an expert took then stands where nothing is asked now.

    Raises:
        InputError: a reference has no gold answer, or an expert's weights are not there.
    """
    for question in references:
        if question.gold is None:
            raise InputError(
                f'the reference "{question.id}" has no "gold" answer to profile against'
            )
    aliases = list(pool.catalog) if experts is None else list(experts)
    answers = await asyncio.gather(
        *(_answer_all(pool, alias, references, seed) for alias in aliases)
    )
    timed = {} if known is None else known.experts
    return Profile(
        references=fingerprint(references),
        prompts=reason_prompt_hash(),
        seed=seed,
        experts={
            alias: tally_answers(
                given,
                references,
                skills,
                identity,
                timed[alias].seconds_per_call if seconds is None and alias in timed else seconds,
            )
            for alias, (given, identity, seconds) in zip(aliases, answers, strict=True)
        },
    )


def tally_answers(
    answers: Iterable[Answer],
    references: Iterable[Question],
    skills: Mapping[str, Sequence[str]],
    identity: str,
    seconds_per_call: float | None = None,
) -> ExpertProfile:
    """Count one expert's answers. An unreadable answer is wrong; a failed request does not count."""
    questions = {question.id: question for question in references}
    tallies: dict[str, Tally] = {}
    overall, failed, tokens, calls = Tally(), 0, 0, 0
    for answer in answers:
        if answer.error is not None:
            failed += 1
            continue
        calls += 1
        tokens += answer.usage.completion_tokens
        right = is_correct(answer.answer, questions[answer.question_id])
        point = Tally(int(right), int(not right))
        overall += point
        # A skill named twice is still one skill (the reference code counts it twice).
        for skill in dict.fromkeys(skills.get(answer.question_id, ())):
            tallies[skill] = tallies.get(skill, Tally()) + point
    return ExpertProfile(
        identity=identity,
        skills=tallies,
        overall=overall,
        failed=failed,
        tokens_per_call=tokens / max(1, calls),
        seconds_per_call=seconds_per_call or 0.0,
    )


async def _answer_all(
    pool: Pool,
    alias: str,
    references: Sequence[Question],
    seed: int,
) -> tuple[list[Answer], str, float | None]:
    """Answers, identity, and wall seconds per call of what was asked now (None if nothing was)."""
    spec = pool.catalog[alias]
    identity = await asyncio.to_thread(pool.identity, alias)
    requests = build_requests(
        references, sampling=spec.sampling.to_sampling(), style=spec.style, seed=seed
    )
    account = pool.ledger.account(alias, "profile")
    calls, seconds = account.calls, account.seconds
    replies = await pool.generate(alias, requests, stage="profile")
    asked = account.calls - calls
    answers = [
        read_reply(reply, question, alias)
        for reply, question in zip(replies, references, strict=True)
    ]
    return answers, identity, (account.seconds - seconds) / asked if asked else None


def _read_expert(row: Mapping[str, Any]) -> ExpertProfile:
    return ExpertProfile(
        identity=row["identity"],
        overall=Tally(*row["overall"]),
        skills={skill: Tally(*counts) for skill, counts in row["skills"].items()},
        failed=row["failed"],
        tokens_per_call=row["tokens_per_call"],
        seconds_per_call=row["seconds_per_call"],
    )
