"""Log-likelihoods of continuations, asked for in as few scored requests as there are contexts."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import inf, log

from ...agents.engines import Message, OptionScore, Reply, Request, Sampling

__all__ = ["Likelihoods", "Wanted"]

MOST_OPTIONS = 32
"""Continuations scored in one request: an engine may run them as one batch."""
LIKELY = log(0.5)
"""A product of probabilities over one half has no factor below it: each token was the likeliest."""
NONE = OptionScore(logprob=-inf, tokens=0)

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A continuation of a context whose likelihood is wanted."""

    turns: tuple[Message, ...]
    continuation: str
    group: Hashable = None
    """What it is weighed against: those with equal groups, or by default those with the same context."""

    @property
    def key(self) -> Key:
        """The same for equal continuations of equal contexts."""
        return json.dumps(self.turns), self.continuation


class Likelihoods:
    """What becomes of wanted continuations, in three steps.

    Score `requests`; hand the replies to `read`; let the model write what that returns, and hand the replies
    to `read_written`. The last is for continuations that are alone in their group: of those alone somebody
    may want to know whether they are what the model would write.
    """

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        self.requests: list[Request] = []
        """One for the continuations of each context, or more if there are very many."""
        self._wanted = list(wanted)
        self._keys = [item.key for item in self._wanted]
        self._scores: dict[Key, OptionScore] = {}
        self._greedy: dict[Key, bool] = {}
        self._writing: list[Wanted] = []
        options: dict[str, dict[str, None]] = {}
        turns: dict[str, tuple[Message, ...]] = {}
        for item, (context, continuation) in zip(self._wanted, self._keys, strict=True):
            options.setdefault(context, {})[continuation] = None
            turns[context] = item.turns
        for context, texts in options.items():
            rest = list(texts)
            while rest:
                part, rest = rest[:MOST_OPTIONS], rest[MOST_OPTIONS:]
                number = str(len(self.requests))
                self.requests.append(
                    Request(id=number, messages=turns[context], options=tuple(part))
                )

    def read(self, replies: Sequence[Reply]) -> list[Request]:
        """Take the scores; a continuation without a reply is as unlikely as can be.

        Returns:
            What the model still has to write: as many tokens as each undecided lone continuation has.
        """
        for request, reply in zip(self.requests, replies, strict=True):
            context = json.dumps(request.messages)
            scores = reply.scores or (NONE,) * len(request.options)
            for option, score in zip(request.options, scores, strict=True):
                self._scores[context, option] = score
                self._greedy[context, option] = score.logprob > LIKELY
        self._writing = self._find_undecided()
        return [
            Request(
                id=str(number),
                messages=item.turns,
                sampling=Sampling(max_tokens=self._scores[item.key].tokens),
            )
            for number, item in enumerate(self._writing)
        ]

    def read_written(self, replies: Sequence[Reply]) -> None:
        """Compare what the model wrote with the continuations."""
        for item, reply in zip(self._writing, replies, strict=True):
            is_same = reply.text.strip() == item.continuation.strip()
            self._greedy[item.key] = is_same and reply.failure is None

    @property
    def found(self) -> list[tuple[float, bool]]:
        """For each continuation its log-probability, and whether it is known to be the greedy one."""
        return [(self._scores[key].logprob, self._greedy[key]) for key in self._keys]

    def _find_undecided(self) -> list[Wanted]:
        groups: dict[Hashable, dict[Key, Wanted]] = {}
        for item, key in zip(self._wanted, self._keys, strict=True):
            groups.setdefault(key[0] if item.group is None else item.group, {})[key] = item
        lone = {
            key: item for group in groups.values() if len(group) == 1 for key, item in group.items()
        }
        return [
            item for key, item in lone.items() if self._scores[key].tokens and not self._greedy[key]
        ]
