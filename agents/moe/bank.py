"""Labelled questions with what re-mixing needs of each: the pathway that was taken and the states.

Built in pieces that survive an interruption; kept as safetensors, read by memory mapping; of one model,
one wording and one set of layers, and of no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from ...retrieval import InputError, Question
from . import bank_files
from .architecture import MoeModel
from .bank_files import MemoryShard, count_bytes, identify
from .letters import ALPHABET, Letters
from .packing import StateKind, choose_kind, unpack
from .restoring import restore
from .states import TokenStates

__all__ = ["StateBank", "build_bank", "identify"]

SMALL = ("residual", "input", "pathway", "logits", "lengths")
DEFAULT_BUDGET = 8 << 30


class StateBank:
    """Questions, whether the model answers them right by default, and their states."""

    def __init__(
        self,
        moe: MoeModel,
        letters: Letters,
        questions: Sequence[Question],
        shards: Sequence[Any],
        *,
        first: int,
        kind: StateKind,
    ) -> None:
        """Use `build_bank` or `load`.

        Args:
            moe: The model that the states are of.
            letters: How it was asked.
            questions: In the order of the states.
            shards: Opened files (anything with `keys`, `get_tensor`, `get_slice`).
            first: Decoder index of the first critical layer.
            kind: How the states are kept.
        """
        self.moe, self.letters, self.first, self.kind = moe, letters, first, kind
        self.questions = tuple(questions)
        self._shards = shards
        small = [{name: shard.get_tensor(name) for name in SMALL} for shard in shards]
        self._small = {name: torch.cat([part[name] for part in small]) for name in SMALL}
        lengths = [part["lengths"] + (kind == "hidden") for part in small]
        self._ends = [
            torch.cat([torch.zeros(1, dtype=torch.long), part.cumsum(0)]) for part in lengths
        ]
        self._places = [
            (number, row)
            for number, part in enumerate(small)
            for row in range(len(part["lengths"]))
        ]

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def options_N(self) -> torch.Tensor:
        """How many options each question has."""
        return torch.tensor([len(question.options) for question in self.questions])

    @property
    def gold_N(self) -> torch.Tensor:
        """Index of each question's right option; -1 where it is not known."""
        known = (question.gold for question in self.questions)
        return torch.tensor([-1 if gold is None else ALPHABET.index(gold) for gold in known])

    @property
    def logits_NO(self) -> torch.Tensor:
        """Logits of the option letters by default routing; those of options that are not there are -inf."""
        logits_NO = self._small["logits"]
        places_O = torch.arange(logits_NO.shape[-1])
        return logits_NO.masked_fill(places_O >= self.options_N[:, None], -torch.inf)

    @property
    def right_N(self) -> torch.Tensor:
        """Whether the unmodified model chooses the gold option."""
        return self.logits_NO.argmax(-1) == self.gold_N

    @property
    def lengths_N(self) -> torch.Tensor:
        """Tokens before the last of each prompt."""
        return self._small["lengths"]

    @property
    def pathway_NME(self) -> torch.Tensor:
        """Default scores of all experts in all layers with routed experts."""
        return self._small["pathway"]

    def pathway_at(self, layers: Sequence[int]) -> torch.Tensor:
        """Default scores [N, C, E] in some layers, by decoder index."""
        known = [layer.index for layer in self.moe.layers]
        return self.pathway_NME[:, [known.index(index) for index in layers]]

    @property
    def input_ND(self) -> torch.Tensor:
        """The last token before the first critical layer's experts: the model's own embedding (§4.3)."""
        return self._small["input"]

    @property
    def bytes(self) -> int:
        """Size of everything that is kept."""
        return sum(map(count_bytes, self._shards))

    def states(self, rows: Sequence[int]) -> TokenStates:
        """States of some questions, on the model's device, in its type. Rows may repeat."""
        index_R = torch.tensor(list(rows), dtype=torch.long)
        device, dtype = self.moe.device, self.moe.dtype
        known = {name: tensor[index_R].to(device) for name, tensor in self._small.items()}
        states = TokenStates(
            first=self.first,
            residual_ND=known["residual"],
            input_ND=known["input"],
            keys={},
            values={},
            lengths_N=known["lengths"],
            pathway_NME=known["pathway"],
            layers=tuple(layer.index for layer in self.moe.layers),
            logits_NO=known["logits"],
        )
        places = [self._places[row] for row in rows]
        if self.kind == "hidden":
            hidden_RTD = self._read("hidden", places, dtype).to(device)
            return restore(self.moe, states, hidden_RTD)
        above = range(self.first + 1, len(self.moe.decoder))

        def read(name: str) -> dict[int, torch.Tensor]:
            read = {i: self._read(f"{name}.{i}", places, dtype) for i in above}
            return {index: tensor.transpose(1, 2).to(device) for index, tensor in read.items()}

        return replace(states, keys=read("key"), values=read("value"))

    def select(self, rows: Sequence[int]) -> StateBank:
        """A bank of some of the questions; the files are shared."""
        chosen = object.__new__(StateBank)
        chosen.__dict__ = self.__dict__ | {
            "questions": tuple(self.questions[row] for row in rows),
            "_small": {name: tensor[list(rows)] for name, tensor in self._small.items()},
            "_places": [self._places[row] for row in rows],
        }
        return chosen

    @classmethod
    def join(cls, banks: Sequence[StateBank]) -> StateBank:
        """One bank of several of the same model, wording and layers; the files are shared.

        Raises:
            InputError: banks that do not fit together, or a question that is in two of them.
        """
        if not banks:
            raise InputError("there are no references to join; give at least one bank.")
        head = banks[0]
        _refuse_twins([question for bank in banks for question in bank.questions])
        if any((bank.first, bank.kind) != (head.first, head.kind) for bank in banks):
            raise InputError("references with other layers or kinds of states cannot be joined.")
        if any(bank.moe.model is not head.moe.model for bank in banks):
            raise InputError("references of different models cannot be joined.")
        if any(bank.letters.prompt_hash != head.letters.prompt_hash for bank in banks):
            raise InputError("references that were asked in different words cannot be joined.")
        joined = object.__new__(cls)
        places: list[tuple[int, int]] = []
        for before, bank in zip(
            accumulate([0, *(len(b._shards) for b in banks)]), banks, strict=False
        ):
            places += [(number + before, row) for number, row in bank._places]
        joined.__dict__ = head.__dict__ | {
            "questions": tuple(question for bank in banks for question in bank.questions),
            "_shards": [shard for bank in banks for shard in bank._shards],
            "_small": {n: torch.cat([b._small[n] for b in banks]) for n in head._small},
            "_ends": [ends for bank in banks for ends in bank._ends],
            "_places": places,
        }
        return joined

    @classmethod
    def load(cls, folder: str | Path, moe: MoeModel, letters: Letters) -> StateBank:
        """Open a bank that `build_bank` wrote.

        Raises:
            InputError: no bank, an unfinished one, or one of another model, wording or version.
        """
        folder = Path(folder)
        plan = bank_files.read_plan(folder)
        if plan is None:
            raise InputError(f"there is no bank of references in {folder}; build one first.")
        bank_files.check_plan(plan, folder, moe, letters)
        return _bank(moe, letters, plan, bank_files.open_shards(folder, plan))

    def _read(
        self, name: str, places: Sequence[tuple[int, int]], dtype: torch.dtype
    ) -> torch.Tensor:
        """Rows of a flat tensor, [R, T, ...], filled up with zeros at the right."""
        pieces: list[torch.Tensor] = []
        for number, row in places:
            ends, shard = self._ends[number], self._shards[number]
            here = slice(int(ends[row]), int(ends[row + 1]))
            named = {name: shard.get_slice(name)[here]}
            if self.kind == "int8":
                named[f"{name}.scale"] = shard.get_slice(f"{name}.scale")[here]
            pieces.append(unpack(named, name, dtype))
        return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)


def build_bank(
    moe: MoeModel,
    letters: Letters,
    questions: Sequence[Question],
    *,
    first: int,
    folder: str | Path | None = None,
    kind: StateKind | None = None,
    budget_bytes: int = DEFAULT_BUDGET,
    batch: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> StateBank:
    """Run the model once over every question and keep the states.

    Questions are ordered by prompt length and id, whatever order they come in. With a folder, finished
    pieces are kept: after an interruption the same call goes on where it stopped.

    Args:
        moe: Which model.
        letters: How it is asked.
        questions: Choices, with ids that differ.
        first: Decoder index of the first critical layer.
        folder: Where to keep the states; None keeps them in memory.
        kind: How states are kept; by default the most exact kind within the budget.
        budget_bytes: For the states.
        batch: Prompts that are run together.
        on_progress: Called with questions done and questions in all.

    Raises:
        InputError: a question that cannot be asked, none at all, ids that do not differ, states larger
            than the budget, or a folder that holds something else.
    """
    if not questions:
        raise InputError("there are no questions to build references from; give at least one.")
    encoded = sorted(
        ((letters.encode(q), q) for q in questions), key=lambda e: (len(e[0]), e[1].id)
    )
    _refuse_twins(questions)
    tokens = sum(len(ids) for ids, _ in encoded)
    kind = kind or choose_kind(moe, first, tokens, len(encoded), budget_bytes)
    if kind is None:
        raise InputError(
            f"the states of {len(encoded):,} references with {tokens:,} tokens do not fit into "
            f"{budget_bytes / 2**30:.2f} GiB in any form; raise the budget or take fewer references."
        )
    plan = bank_files.make_plan(moe, letters, [question for _, question in encoded], first, kind)
    prompts = [ids for ids, _ in encoded]
    if folder is None:
        parts = bank_files.make_shards(moe, letters, prompts, first, kind, batch, on_progress)
        return _bank(moe, letters, plan, [MemoryShard(part) for part in parts])
    folder = Path(folder)
    with bank_files.locked(folder):
        bank_files.begin(folder, plan)
        done = bank_files.count_done(folder, plan)
        rest = bank_files.make_shards(moe, letters, prompts, first, kind, batch, on_progress, done)
        bank_files.write_shards(folder, plan, rest, done)
    return _bank(moe, letters, plan, bank_files.open_shards(folder, plan))


def _bank(
    moe: MoeModel, letters: Letters, plan: dict[str, Any], shards: Sequence[Any]
) -> StateBank:
    questions = [Question.restore(row) for row in plan["questions"]]
    return StateBank(moe, letters, questions, shards, first=plan["first"], kind=plan["kind"])


def _refuse_twins(questions: Sequence[Question]) -> None:
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise InputError(
                f'the question "{question.id}" is there twice among the references; leave one out.'
            )
        seen.add(question.id)
