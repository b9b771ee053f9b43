"""What a run cost: calls, tokens, loads and seconds, per expert and stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..engines import Reply, Usage
from .events import LoadWay

__all__ = ["Account", "Ledger", "LoadRecord"]


@dataclass(slots=True, kw_only=True)
class Account:
    """One expert in one stage."""

    calls: int = 0
    """Requests that an engine worked on, failed ones included."""
    reused: int = 0
    """Requests that the answer store answered, without a call."""
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    """Engine time. Experts that share an engine share its time, so that seconds add up."""

    def to_json(self) -> dict[str, Any]:
        """The account as plain JSON values."""
        return {
            "calls": self.calls,
            "reused": self.reused,
            "failures": self.failures,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRecord:
    """One time that weights were loaded."""

    weights: str
    key: str
    seconds: float
    memory_bytes: int
    device: str = ""
    way: LoadWay = "fresh"
    replica: bool = False
    """Whether the same weights were loaded already, and this was to share their work."""


@dataclass(slots=True)
class Ledger:
    """Grows while a pool works; the pool alone writes to it."""

    accounts: dict[tuple[str, str], Account] = field(default_factory=dict[tuple[str, str], Account])
    """(alias, stage) to account."""
    loads: list[LoadRecord] = field(default_factory=list[LoadRecord])

    def account(self, alias: str, stage: str) -> Account:
        """The account of an expert in a stage, opened if need be."""
        account = self.accounts.get((alias, stage))
        if account is None:
            account = self.accounts[alias, stage] = Account()
        return account

    def record(self, alias: str, stage: str, reply: Reply) -> None:
        """Write down one reply, as soon as it is there: an interrupted batch has cost what it cost."""
        account = self.account(alias, stage)
        account.calls += 1
        account.failures += reply.failure is not None
        account.prompt_tokens += reply.usage.prompt_tokens
        account.completion_tokens += reply.usage.completion_tokens

    def since(self, earlier: Ledger) -> Ledger:
        """What was added after `earlier`, a copy of this ledger."""
        later = Ledger(loads=self.loads[len(earlier.loads) :])
        for key, account in self.accounts.items():
            before = earlier.accounts.get(key, Account())
            names = [field.name for field in fields(Account)]
            later.accounts[key] = Account(
                **{name: getattr(account, name) - getattr(before, name) for name in names}
            )
        return later

    @property
    def calls(self) -> int:
        """Calls of all experts in all stages."""
        return sum(account.calls for account in self.accounts.values())

    @property
    def usage(self) -> Usage:
        """Tokens of all experts in all stages."""
        return Usage(
            prompt_tokens=sum(a.prompt_tokens for a in self.accounts.values()),
            completion_tokens=sum(a.completion_tokens for a in self.accounts.values()),
        )

    @property
    def first_loads(self) -> list[LoadRecord]:
        """Loads of weights that were not there; a replica beside a loaded model is none."""
        return [load for load in self.loads if not load.replica]

    @property
    def distinct_weights(self) -> int:
        """How many different weights were loaded; equal to `len(first_loads)` when each was loaded once."""
        return len({load.key for load in self.loads})

    def to_json(self) -> dict[str, Any]:
        """The ledger as plain JSON values: totals, one row per expert and stage, one per load."""
        usage = self.usage
        return {
            "calls": self.calls,
            "reused": sum(account.reused for account in self.accounts.values()),
            "failures": sum(account.failures for account in self.accounts.values()),
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "seconds": round(sum(a.seconds for a in self.accounts.values()), 3),
            "loads": len(self.first_loads),
            "replicas": len(self.loads) - len(self.first_loads),
            "distinct_weights": self.distinct_weights,
            "load_seconds": round(sum(load.seconds for load in self.loads), 3),
            "experts": [
                {"expert": alias, "stage": stage, **account.to_json()}
                for (alias, stage), account in sorted(self.accounts.items())
            ],
            "loaded": [
                {
                    "weights": load.weights,
                    "key": load.key,
                    "seconds": round(load.seconds, 3),
                    "memory_bytes": load.memory_bytes,
                    "device": load.device,
                    "way": load.way,
                    "replica": load.replica,
                }
                for load in self.loads
            ],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Ledger:
        """Read what `to_json` wrote, so that a resumed run goes on counting."""
        ledger = cls()
        for row in content["experts"]:
            figures = {key: row[key] for key in Account().to_json()}
            ledger.accounts[row["expert"], row["stage"]] = Account(**figures)
        ledger.loads = [LoadRecord(**row) for row in content["loaded"]]
        return ledger
