"""What a baseline has to say: who is cast, who speaks next, how it is asked, and what is concluded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Self

from ...agents import Recruit, SkillWeights, Verdict, recruit, same_answer, vote
from ...agents.engines import Request
from ...retrieval import InputError, Question
from ..state import Resources
from .speech import ask_first, merge
from .turns import Seat, Turn, answers_of, last_answers, last_round

__all__ = ["Cast", "Skills", "Talk", "cast_strongest", "conclude", "recruit_for", "seat_all"]

Skills = Mapping[str, SkillWeights]
Cast = dict[str, list[Recruit]]


class Talk(ABC):
    """A way to work on a question in rounds. Subclasses say what is special about theirs.

    `create_talk` makes a graph of it in which each round asks every expert once, for all questions.
    A talk keeps nothing: all it knows of a question is what was said so far.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    """In words, for tables."""
    source: ClassVar[str]
    """Where the protocol and its settings come from."""
    speaks: ClassVar[bool] = False
    """Whether experts are asked more than the plain question: recordings cannot answer that."""
    needs_skills: ClassVar[bool] = False

    @property
    @abstractmethod
    def calls(self) -> int:
        """Calls per question, at most."""

    @classmethod
    @abstractmethod
    def fit(cls, calls: int, experts: int) -> Self | None:
        """The largest form that makes at most so many calls per question; None if there is none.

        Args:
            calls: Per question.
            experts: How many there are in the pool.
        """

    @abstractmethod
    def cast(self, context: Resources, questions: Sequence[Question], skills: Skills) -> Cast:
        """The expert of each agent, for every question.

        Raises:
            InputError: the context does not hold what casting needs.
        """

    def seat(self, question: Question, cast: Sequence[str], turns: Sequence[Turn]) -> list[Seat]:
        """Who speaks in the next round; nobody ends the talk. By default every agent, once."""
        return [] if turns else seat_all(cast)

    def pose(
        self,
        context: Resources,
        question: Question,
        seat: Seat,
        cast: Sequence[str],
        turns: Sequence[Turn],
    ) -> Request:
        """What the agent is asked. By default the plain question; who merges reads the last round.

        The request's id must end in `#AGENT`.
        """
        if seat.merges:
            return merge(context, question, seat, last_round(turns))
        return ask_first(context, question, seat, cast)

    def decide(self, question: Question, turns: Sequence[Turn]) -> Verdict:
        """What is concluded. By default the vote of the latest answers, or what a merging turn says."""
        return conclude(question, turns)


def seat_all(cast: Sequence[str]) -> list[Seat]:
    """Every agent in its place."""
    return [Seat(agent=at, expert=expert) for at, expert in enumerate(cast)]


def cast_strongest(
    context: Resources, questions: Sequence[Question], number: int, *, times: int = 1
) -> Cast:
    """The strongest experts by the profile, the same for every question.

    Args:
        context: Has the expertise.
        questions: The batch.
        number: How many different experts.
        times: Agents that each of them plays.
    """
    chosen = recruit_for(context, questions, {}, k=number, policy="top_k")
    return {qid: [r for r in recruits for _ in range(times)] for qid, recruits in chosen.items()}


def recruit_for(
    context: Resources, questions: Sequence[Question], skills: Skills, *, k: int, policy: str
) -> Cast:
    """Experts by one of the recruiting policies, with repeated draws as several agents.

    Raises:
        InputError: there is no profile and the policy needs one.
    """
    if context.expertise is None:
        if policy != "random":
            raise InputError(
                "who is best is not known without a profile: give one with --profile, or labelled "
                "questions to make one with --references"
            )
        aliases = context.experts or tuple(context.pool.catalog)
        chosen = recruit({q.id: {} for q in questions}, aliases, k=k, seed=context.seed)
    else:
        chosen = context.expertise.recruit(
            questions,
            skills,
            k=k,
            policy=policy,  # pyright: ignore[reportArgumentType]
            seed=context.seed,
        )
    return {
        qid: [replace(r, samples=1) for r in recruits for _ in range(r.samples)]
        for qid, recruits in chosen.items()
    }


def conclude(question: Question, turns: Sequence[Turn]) -> Verdict:
    """The vote of each agent's latest answer; the answer of a turn that merged, where it has one.

    The confidence is the share of the agents' readable answers that agree. Whoever failed in any round
    is among the missing, so that a resumed run asks again.
    """
    voted = vote(question, answers_of(last_answers(turns)))
    missing = {turn.expert: turn.error for turn in turns if turn.error is not None}
    voted = replace(voted, missing={**voted.missing, **missing})
    merged = [turn for turn in turns if turn.merges and turn.kind == "answer"]
    last = max((turn.round for turn in turns), default=0)
    final = [turn for turn in merged if turn.round == last]
    if not final:
        return voted
    answer = final[-1].answer
    if answer is None:
        why = final[-1].error or "its reply holds no answer"
        note = f"the aggregator could not decide ({why}): vote kept"
        return replace(voted, text=final[-1].text, note=note)
    shown = next((v for v in voted.votes if same_answer(v, answer, question)), answer)
    given = sum(map(len, voted.votes.values()))
    agreeing = len(voted.votes.get(shown, ()))
    return replace(
        voted,
        answer=shown,
        confidence=agreeing / given if given else 0.0,
        method="model",
        text=final[-1].text,
    )
