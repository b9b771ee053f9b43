"""Labelled questions with what re-mixing needs of each: the pathway that was taken and the states.

Built in pieces that survive an interruption; kept as safetensors, read by memory mapping; of one model,
one wording and one set of layers, and of no other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from ...retrieval import InputError, Question
from .architecture import MoeModel
from .letters import ALPHABET, Letters, hash_text, pad_prompts
from .packing import StateKind, choose_kind, pack, unpack
from .restoring import restore
from .states import TokenStates, capture, join_states

__all__ = ["StateBank", "build_bank", "identify"]

SHARD = 256
"""Questions in a file: what an interruption costs at most."""
FORMAT = 1
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
        self._ends = [torch.cat([torch.zeros(1, dtype=torch.long), part.cumsum(0)]) for part in lengths]
        self._places = [
            (number, row) for number, part in enumerate(small) for row in range(len(part["lengths"]))
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
    def pathway_NME(self) -> torch.Tensor:
        """Default scores of all experts in all layers with routed experts."""
        return self._small["pathway"]

    @property
    def input_ND(self) -> torch.Tensor:
        """The last token before the first critical layer's experts: the model's own embedding (§4.3)."""
        return self._small["input"]

    @property
    def bytes(self) -> int:
        """Size of everything that is kept."""
        total = 0
        for shard in self._shards:
            for name in shard.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                part = shard.get_slice(name)
                size = {"I8": 1, "BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I64": 8}
                number = 1
                for length in part.get_shape():
                    number *= length
                total += number * size[part.get_dtype()]
        return total

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
        head = banks[0]
        ids = [question.id for bank in banks for question in bank.questions]
        if len(set(ids)) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise InputError(f'the question "{twice}" is in two sets of references; take it out of one.')
        if any((bank.first, bank.kind) != (head.first, head.kind) for bank in banks):
            raise InputError("references with other layers or kinds of states cannot be joined.")
        joined = object.__new__(cls)
        places: list[tuple[int, int]] = []
        for before, bank in zip(accumulate([0, *(len(b._shards) for b in banks)]), banks, strict=False):
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
        plan = _read_plan(folder)
        if plan is None:
            raise InputError(f"there is no bank of references in {folder}; build one first.")
        _check_plan(plan, folder, moe, letters)
        return _open(folder, plan, moe, letters)

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


@dataclass(frozen=True, slots=True)
class _Memory:
    """A shard that was never written: for banks without a folder."""

    tensors: dict[str, torch.Tensor]

    def keys(self) -> list[str]:
        return list(self.tensors)

    def get_tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def get_slice(self, name: str) -> Any:
        return _MemorySlice(self.tensors[name])


@dataclass(frozen=True, slots=True)
class _MemorySlice:
    tensor: torch.Tensor

    def __getitem__(self, here: slice) -> torch.Tensor:
        return self.tensor[here]

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def get_dtype(self) -> str:
        names = {
            torch.int8: "I8",
            torch.bfloat16: "BF16",
            torch.float16: "F16",
            torch.float32: "F32",
            torch.float64: "F64",
            torch.int64: "I64",
        }
        return names[self.tensor.dtype]


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
        InputError: a question that cannot be asked, none at all, states larger than the budget, or a
            folder that holds something else.
    """
    if not questions:
        raise InputError("there are no questions to build references from; give at least one.")
    encoded = sorted(((letters.encode(q), q) for q in questions), key=lambda e: (len(e[0]), e[1].id))
    tokens = sum(len(ids) for ids, _ in encoded)
    kind = kind or choose_kind(moe, first, tokens, len(encoded), budget_bytes)
    if kind is None:
        raise InputError(
            f"the states of {len(encoded):,} references with {tokens:,} tokens do not fit into "
            f"{budget_bytes / 2**30:.2f} GiB in any form; raise the budget or take fewer references."
        )
    plan = {
        "format": FORMAT,
        "model": identify(moe),
        "prompt": letters.prompt_hash,
        "first": first,
        "kind": kind,
        "questions": [question.to_json() for _, question in encoded],
    }
    if folder is None:
        parts = list(_run(moe, letters, [ids for ids, _ in encoded], first, kind, batch, on_progress))
        return _bank(moe, letters, plan, [_Memory(part) for part in parts])
    return _build_in(Path(folder), plan, encoded, moe, letters, batch, on_progress)


def identify(moe: MoeModel) -> str:
    """A hash of a model: its configuration, its type, and samples of its weights with all routers."""
    config = {k: v for k, v in moe.config.to_dict().items() if not k.startswith(("_", "transformers"))}
    routers = b"".join(
        layer.router.weight.detach().float().cpu().numpy().tobytes()  # pyright: ignore
        for layer in moe.layers
    )
    samples: list[str] = []
    for name, parameter in moe.model.named_parameters():
        flat = parameter.detach().reshape(-1)
        samples.append(f"{name}{flat[:: max(1, flat.numel() // 16)].double().sum().item():.9e}")
    text = json.dumps(config, sort_keys=True, default=str) + str(moe.dtype) + "".join(samples)
    return hash_text(text + hash_text(routers.hex()))


def _run(
    moe: MoeModel,
    letters: Letters,
    prompts: Sequence[Sequence[int]],
    first: int,
    kind: StateKind,
    batch: int,
    on_progress: Callable[[int, int], None] | None,
    start: int = 0,
) -> Iterator[dict[str, torch.Tensor]]:
    """Shards of packed states, from shard `start` on."""
    tokens_O = letters.tokens_O.to(moe.device)
    for begin in range(start * SHARD, len(prompts), SHARD):
        shard = prompts[begin : begin + SHARD]
        parts: list[TokenStates] = []
        for offset in range(0, len(shard), batch):
            ids_BT, mask_BT = pad_prompts(shard[offset : offset + batch], moe.device)
            parts.append(
                capture(
                    moe,
                    ids_BT,
                    mask_BT,
                    first=first,
                    tokens_O=tokens_O,
                    keeps_hidden=kind == "hidden",
                    keeps_cache=kind != "hidden",
                )
            )
            if on_progress is not None:
                on_progress(min(begin + offset + batch, len(prompts)), len(prompts))
        yield pack(join_states(parts), kind)


def _build_in(
    folder: Path,
    plan: dict[str, Any],
    encoded: Sequence[tuple[list[int], Question]],
    moe: MoeModel,
    letters: Letters,
    batch: int,
    on_progress: Callable[[int, int], None] | None,
) -> StateBank:
    from safetensors.torch import save_file

    old = _read_plan(folder)
    if old is not None and old != plan:
        raise InputError(
            f"{folder} holds references of another model, wording, kind or set of questions; "
            "choose another folder, or delete it."
        )
    folder.mkdir(parents=True, exist_ok=True)
    if old is None:
        if any(folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no references; choose another folder.")
        _write(folder / "plan.json", json.dumps(plan))
    shards = -(-len(encoded) // SHARD)
    done = 0
    while done < shards and _shard(folder, done).exists():
        done += 1
    rest = _run(moe, letters, [i for i, _ in encoded], plan["first"], plan["kind"], batch, on_progress, done)
    for number, part in enumerate(rest, done):
        draft = _shard(folder, number).with_suffix(".draft")
        save_file(part, draft)
        draft.rename(_shard(folder, number))  # whole or not at all
    return _open(folder, plan, moe, letters)


def _open(folder: Path, plan: dict[str, Any], moe: MoeModel, letters: Letters) -> StateBank:
    from safetensors import safe_open

    paths = [_shard(folder, i) for i in range(-(-len(plan["questions"]) // SHARD))]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise InputError(
            f"the references in {folder} are unfinished ({len(missing)} of {len(paths)} pieces are "
            "missing); run the command that builds them again, it goes on where it stopped."
        )
    opened: Any = safe_open
    return _bank(moe, letters, plan, [opened(path, framework="pt") for path in paths])


def _bank(
    moe: MoeModel, letters: Letters, plan: dict[str, Any], shards: Sequence[Any]
) -> StateBank:
    questions = [Question.restore(row) for row in plan["questions"]]
    return StateBank(moe, letters, questions, shards, first=plan["first"], kind=plan["kind"])


def _check_plan(plan: dict[str, Any], folder: Path, moe: MoeModel, letters: Letters) -> None:
    if plan.get("format") != FORMAT:
        raise InputError(f"the references in {folder} have format {plan.get('format')}; build them anew.")
    if plan["model"] != identify(moe):
        raise InputError(
            f"the references in {folder} were made by another model; build them with this one."
        )
    if plan["prompt"] != letters.prompt_hash:
        raise InputError(
            f"the references in {folder} were asked in other words or under another chat template; "
            "build them anew."
        )


def _read_plan(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}/plan.json cannot be read ({error}); build it anew.") from error


def _shard(folder: Path, number: int) -> Path:
    return folder / f"states-{number:05}.safetensors"


def _write(path: Path, text: str) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(text, encoding="utf-8")
    draft.rename(path)
