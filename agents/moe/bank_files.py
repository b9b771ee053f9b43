"""A bank of states as it lies in files: a plan that says what it holds, and pieces that survive.

A piece is whole or not there at all, so what was interrupted goes on at the first that is missing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...retrieval import InputError, Question, fingerprint
from .architecture import MoeModel
from .letters import Letters, hash_text, pad_prompts
from .packing import StateKind, pack
from .states import TokenStates, capture, join_states

__all__ = [
    "SHARD",
    "MemoryShard",
    "begin",
    "check_plan",
    "count_bytes",
    "count_done",
    "identify",
    "locked",
    "make_plan",
    "make_shards",
    "name_states",
    "open_shards",
    "read_plan",
    "write_shards",
]

SHARD = 256
"""Questions in a piece: what an interruption costs at most."""
FORMAT = 1
SIZES = {"I8": 1, "BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I64": 8}
TYPES = {
    torch.int8: "I8",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}

Plan = dict[str, Any]


def identify(moe: MoeModel) -> str:
    """A hash of a model: its configuration, its type, and samples of its weights with all routers."""
    config = {
        k: v for k, v in moe.config.to_dict().items() if not k.startswith(("_", "transformers"))
    }
    routers_of: list[Any] = [layer.router for layer in moe.layers]
    routers = b"".join(
        router.weight.detach().float().cpu().numpy().tobytes() for router in routers_of
    )
    samples: list[str] = []
    for name, parameter in moe.model.named_parameters():
        flat = parameter.detach().reshape(-1)
        samples.append(f"{name}{flat[:: max(1, flat.numel() // 16)].double().sum().item():.9e}")
    text = json.dumps(config, sort_keys=True, default=str) + str(moe.dtype) + "".join(samples)
    return hash_text(text + hash_text(routers.hex()))


def make_plan(
    moe: MoeModel, letters: Letters, questions: Sequence[Question], first: int, kind: StateKind
) -> Plan:
    """What a bank holds, as JSON."""
    return {
        "format": FORMAT,
        "model": identify(moe),
        "prompt": letters.prompt_hash,
        "first": first,
        "kind": kind,
        "questions": [question.to_json() for question in questions],
    }


def read_plan(folder: Path) -> Plan | None:
    """The plan of a folder; None if there is no such file.

    Raises:
        InputError: a file that is no plan.
    """
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}/plan.json cannot be read ({error}); build it anew.") from error
    if not isinstance(plan, dict) or "format" not in plan:
        raise InputError(f"{folder}/plan.json is no plan of references; build it anew.")
    return plan  # pyright: ignore[reportUnknownVariableType]


def check_plan(plan: Plan, folder: Path, moe: MoeModel, letters: Letters) -> None:
    """Compare a plan with who wants to use it.

    Raises:
        InputError: it was made by another version, by another model or in other words.
    """
    if plan["format"] != FORMAT:
        raise InputError(
            f"the references in {folder} have format {plan['format']}; build them anew."
        )
    if missing := {"model", "prompt", "first", "kind", "questions"} - plan.keys():
        raise InputError(f"{folder}/plan.json lacks {', '.join(sorted(missing))}; build it anew.")
    if plan["model"] != identify(moe):
        raise InputError(
            f"the references in {folder} were made by another model; build them with this one."
        )
    if plan["prompt"] != letters.prompt_hash:
        raise InputError(
            f"the references in {folder} were asked in other words or under another chat template; "
            "build them anew."
        )


@contextlib.contextmanager
def locked(folder: Path) -> Generator[None]:
    """Let one process at a time build in a folder; another waits, and then finds everything done.

    Raises:
        InputError: the folder cannot be made.
    """
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(folder.name + ".lock"))
        lock.acquire()
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error}); choose another folder.") from error
    try:
        yield
    finally:
        lock.release()


def name_states(moe: MoeModel, letters: Letters, questions: Sequence[Question], first: int) -> str:
    """Twelve digits that tell states of other questions, models, words and layers apart."""
    parts = (identify(moe), letters.prompt_hash, fingerprint(questions), str(first))
    return hash_text("|".join(parts))[:12]


def begin(folder: Path, plan: Plan) -> None:
    """Write the plan into a new folder, or find it there already.

    Raises:
        InputError: the folder holds something else.
    """
    old = read_plan(folder)
    if old is not None and old != plan:
        raise InputError(
            f"{folder} holds references of another model, wording, kind or set of questions; "
            "choose another folder, or delete it."
        )
    folder.mkdir(parents=True, exist_ok=True)
    if old is not None:
        return
    draft = folder / "plan.draft"
    if any(path != draft for path in folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no references; choose another folder.")
    draft.write_text(json.dumps(plan), encoding="utf-8")
    draft.rename(folder / "plan.json")


def count_done(folder: Path, plan: Plan) -> int:
    """How many pieces are there already, from the first on."""
    missing = (n for n, path in enumerate(_paths(folder, plan)) if not path.exists())
    return next(missing, len(_paths(folder, plan)))


def make_shards(
    moe: MoeModel,
    letters: Letters,
    prompts: Sequence[Sequence[int]],
    first: int,
    kind: StateKind,
    batch: int,
    on_progress: Callable[[int, int], None] | None = None,
    start: int = 0,
) -> Iterator[dict[str, torch.Tensor]]:
    """Run prompts and pack their states into pieces, from number `start` on."""
    tokens_O = letters.tokens_O.to(moe.device)
    for begun in range(start * SHARD, len(prompts), SHARD):
        shard = prompts[begun : begun + SHARD]
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
                on_progress(begun + min(offset + batch, len(shard)), len(prompts))
        yield pack(join_states(parts), kind)


def write_shards(
    folder: Path, plan: Plan, shards: Iterator[dict[str, torch.Tensor]], start: int
) -> None:
    """Write pieces as they come, from number `start` on.

    Raises:
        InputError: they cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    for path, tensors in zip(_paths(folder, plan)[start:], shards, strict=True):
        draft = path.with_suffix(".draft")
        try:
            save_file(tensors, draft)
            draft.rename(path)  # whole or not at all
        except (SafetensorError, OSError) as error:
            draft.unlink(missing_ok=True)
            raise InputError(
                f"states cannot be written to {folder} ({error}); make room there, or choose another folder. "
                "Finished pieces are kept."
            ) from error


def open_shards(folder: Path, plan: Plan) -> list[Any]:
    """Map all pieces into memory.

    Raises:
        InputError: some are missing or broken.
    """
    from safetensors import SafetensorError, safe_open

    paths = _paths(folder, plan)
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise InputError(
            f"the references in {folder} are unfinished ({len(missing)} of {len(paths)} pieces are "
            "missing); run the command that builds them again, it goes on where it stopped."
        )
    opened: list[Any] = []
    open_file: Any = safe_open
    for path in paths:
        try:
            opened.append(open_file(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} cannot be read ({error}); delete it and run the command that builds the "
                "references again, it makes what is missing."
            ) from error
    return opened


@dataclass(frozen=True, slots=True)
class MemoryShard:
    """A piece that was never written: for banks without a folder."""

    tensors: dict[str, torch.Tensor]

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(self.tensors)

    def get_tensor(self, name: str) -> torch.Tensor:
        """One of them."""
        return self.tensors[name]

    def get_slice(self, name: str) -> _MemorySlice:
        """One of them, to be read in parts."""
        return _MemorySlice(self.tensors[name])


@dataclass(frozen=True, slots=True)
class _MemorySlice:
    tensor: torch.Tensor

    def __getitem__(self, here: slice) -> torch.Tensor:
        return self.tensor[here]

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def get_dtype(self) -> str:
        return TYPES[self.tensor.dtype]


def count_bytes(shard: Any) -> int:
    """Size of all tensors of a piece."""
    total = 0
    for name in shard.keys():  # noqa: SIM118 - a safetensors handle is no mapping
        part = shard.get_slice(name)
        number = 1
        for length in part.get_shape():
            number *= length
        total += number * SIZES[part.get_dtype()]
    return total


def _paths(folder: Path, plan: Plan) -> list[Path]:
    number = -(-len(plan["questions"]) // SHARD)
    return [folder / f"states-{n:05}.safetensors" for n in range(number)]
