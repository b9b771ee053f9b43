"""`pool.yaml`: which experts there are, and how each is run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from ...retrieval import InputError
from ..engines import Sampling
from ..reason import AnswerStyle
from .weights import FolderWeights, HubWeights, PackageWeights

__all__ = [
    "Catalog",
    "ChatModelExpert",
    "ExpertSpec",
    "GivenExpert",
    "OpenAIExpert",
    "PoolFile",
    "ReplayExpert",
    "SamplingSpec",
    "ScriptedExpert",
    "TransformersExpert",
    "VllmExpert",
]

Alias = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SamplingSpec(_Strict):
    """How an expert draws its answers, unless a request says otherwise."""

    temperature: float = Field(default=0.0, ge=0.0, le=5.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    max_tokens: int = Field(default=512, ge=1)
    stop: tuple[str, ...] = ()

    def to_sampling(self) -> Sampling:
        """The same as an engine reads it."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            stop=self.stop,
        )


class _Expert(_Strict):
    alias: Alias = Field(description="The name by which everything else speaks of this expert.")
    persona: str | None = Field(None, description="A system turn put before every question.")
    style: AnswerStyle = Field(
        "reason",
        description="reason: write an answer. score: choose the likeliest option (needs local weights).",
    )
    sampling: SamplingSpec = SamplingSpec()


def _weights_tag(value: object) -> str:
    """Which kind of weights is meant: by the key that only that kind has."""
    keys = cast(
        "dict[str, Any]", value if isinstance(value, dict) else getattr(value, "__dict__", {})
    )
    return "package" if "package" in keys else "path" if "path" in keys else "hub"


Weights = Annotated[
    Annotated[HubWeights, Tag("hub")]
    | Annotated[FolderWeights, Tag("path")]
    | Annotated[PackageWeights, Tag("package")],
    Discriminator(_weights_tag),
]


class _LocalExpert(_Expert):
    weights: Weights = Field(
        description="{hub, revision} with 40 hexadecimal digits, {path} under root, or {package}."
    )
    merge: str | None = Field(
        None,
        description="Folder of a LoRA adapter to add to the weights: another model, at full speed.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    context: int | None = Field(None, ge=64, description="Tokens for prompt and answer together.")
    chat_template: str | None = Field(
        None, description='"plain" for a base model, or a Jinja file beside the pool file.'
    )
    memory_gib: float | None = Field(None, gt=0, description="Overrides the estimate.")


class VllmExpert(_LocalExpert):
    """Local weights run by vLLM in a process of their own."""

    engine: Literal["vllm"]
    adapter: str | None = Field(None, description="Folder of a LoRA adapter, beside the pool file.")
    kv_cache_mib: int | None = Field(None, ge=16)
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)


class TransformersExpert(_LocalExpert):
    """Local weights run by transformers inside this process."""

    engine: Literal["transformers"]


class OpenAIExpert(_Expert):
    """A model behind an OpenAI-compatible address."""

    engine: Literal["openai"]
    address: str = Field(pattern=r"^https?://", description="Up to and including /v1.")
    model: str
    api_key_env: str | None = Field(None, description="Environment variable that holds the key.")
    timeout: float = Field(120.0, gt=0)
    retries: int = Field(4, ge=0)
    concurrency: int = Field(8, ge=1)


class ChatModelExpert(_Expert):
    """A LangChain chat model, by the name that `init_chat_model` takes."""

    engine: Literal["chat_model"]
    model: str = Field(pattern=r"^[\w.-]+:.+", description='"provider:model".')


class ReplayExpert(_Expert):
    """Recorded answers of a real model."""

    engine: Literal["replay"]
    table: str = Field(description="Folder with questions.parquet and outcomes.parquet.")
    model: str


class ScriptedExpert(_Expert):
    """A double for tests: answers from a JSON file."""

    engine: Literal["scripted"]
    script: str


class GivenExpert(_Expert):
    """An engine that the program hands to `Pool(engines={alias: engine})`."""

    engine: Literal["given"]


ExpertSpec = Annotated[
    VllmExpert
    | TransformersExpert
    | OpenAIExpert
    | ChatModelExpert
    | ReplayExpert
    | ScriptedExpert
    | GivenExpert,
    Field(discriminator="engine"),
]


class PoolFile(_Strict):
    """The file's contents, as they stand."""

    root: str = Field(".", description="Folder that local weights must lie in, beside this file.")
    memory_gib: float | None = Field(
        None, gt=0, description="What all loaded models may take together; default: free memory."
    )
    max_resident: int | None = Field(
        None, ge=1, description="Models kept loaded at once; default: what fits (1 on CUDA)."
    )
    aggregator: Alias | None = Field(
        None, description="Expert that merges drafts; without it, the panel votes."
    )
    skills: dict[str, str] = Field(
        default_factory=dict,
        description="Closed vocabulary: skill -> one-line description. Empty: keywords by a model.",
    )
    keywords_by: Alias | None = Field(
        None, description="Expert that names the skills when there is no closed vocabulary."
    )
    experts: tuple[ExpertSpec, ...] = Field(min_length=1)


class Catalog(Mapping[str, ExpertSpec]):
    """The experts of a pool file by alias, in the file's order, with paths made absolute."""

    def __init__(self, file: PoolFile, base: Path) -> None:
        self.file = file
        self.base = base.resolve()
        self._experts = {spec.alias: spec for spec in file.experts}
        _check_aliases(file, self._experts)

    @classmethod
    def load(cls, path: str | Path) -> Catalog:
        """Read a pool file.

        Raises:
            InputError: the file is missing or does not say what a pool is; one sentence, with the
                place in the file and what is possible there.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(
                f"no pool file at {path}: see examples/pool.yaml for one to start from"
            )
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            sentence = " ".join(str(error).split())
            raise InputError(f"{path} is not YAML: {sentence}") from None
        return cls.from_dict(content, base=path.parent, source=str(path))

    @classmethod
    def from_dict(
        cls, content: object, *, base: str | Path = ".", source: str = "the pool"
    ) -> Catalog:
        """Build a catalog from the content that a pool file would have.

        Raises:
            InputError: as for `load`.
        """
        if not isinstance(content, dict):
            raise InputError(f'{source}: a pool is a mapping with the key "experts"')
        try:
            return cls(PoolFile.model_validate(content), Path(base))
        except ValidationError as error:
            raise InputError(
                f"{source}: {_explain(error, cast('dict[str, Any]', content))}"
            ) from None
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    def __getitem__(self, alias: str) -> ExpertSpec:
        try:
            return self._experts[alias]
        except KeyError:
            raise InputError(
                f'no expert named "{alias}"; the pool has {", ".join(self._experts)}'
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._experts)

    def __len__(self) -> int:
        return len(self._experts)

    def __contains__(self, alias: object) -> bool:
        return alias in self._experts

    @property
    def root(self) -> Path:
        """Folder that local weights must lie in."""
        return (self.base / self.file.root).resolve()

    def locate(self, name: str) -> Path:
        """A file or folder beside the pool file.

        Raises:
            InputError: it does not exist, or leads out of the pool file's folder.
        """
        path = (self.base / name).resolve()
        if not path.is_relative_to(self.base):
            raise InputError(f"{name} leads out of {self.base}; the pool's files must lie in it")
        if not path.exists():
            raise InputError(f"{name} does not exist in {self.base}")
        return path


def _check_aliases(file: PoolFile, experts: Mapping[str, object]) -> None:
    aliases = [spec.alias for spec in file.experts]
    for alias in aliases:
        if aliases.count(alias) > 1:
            raise InputError(f'two experts have the alias "{alias}"; aliases must differ')
    for role, alias in (("aggregator", file.aggregator), ("keywords_by", file.keywords_by)):
        if alias is not None and alias not in experts:
            raise InputError(f'{role} "{alias}" is no expert; the pool has {", ".join(experts)}')


def _explain(error: ValidationError, content: dict[str, Any]) -> str:
    """The first problem of a pool file in one sentence."""
    # A misspelt key is both unknown and missing; the unknown one shows what was meant.
    first = min(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    place = _name_place(first["loc"], content)
    match first["type"]:
        case "extra_forbidden":
            return f"{place}: unknown key; known here: {', '.join(_known_keys(first['loc']))}"
        case "union_tag_invalid":
            tag = json.dumps((first.get("ctx") or {}).get("tag"))
            return f"{place}: unknown engine {tag}; engines are {', '.join(_ENGINES)}"
        case "union_tag_not_found":
            return f'{place}: the key "engine" is missing'
        case "missing":
            return f"{place}: this key is missing"
        case _:
            message = first["msg"].removeprefix("Value error, ")
            return f"{place}: {message[:1].lower()}{message[1:]} (got {str(first['input'])[:80]!r})"


def _name_place(location: tuple[int | str, ...], content: dict[str, Any]) -> str:
    """`experts.0.vllm.weights` as `expert "smol", weights`."""
    # pydantic names the union members it went through: experts.0.vllm.weights.hub.revision
    parts = [
        part
        for at, part in enumerate(location)
        if not (at == 2 and part in _ENGINES)
        and not (at > 2 and location[at - 1] == "weights" and part in _WEIGHTS)
    ]
    if len(parts) >= 2 and parts[0] == "experts" and isinstance(parts[1], int):
        experts = cast("list[dict[str, Any]]", content.get("experts"))
        alias = experts[parts[1]].get("alias", f"number {parts[1] + 1}")
        parts = [f'expert "{alias}"', *parts[2:]]
    return ", ".join(map(str, parts)) or "top level"


_ENGINES: dict[str, type[_Expert]] = {
    "vllm": VllmExpert,
    "transformers": TransformersExpert,
    "openai": OpenAIExpert,
    "chat_model": ChatModelExpert,
    "replay": ReplayExpert,
    "scripted": ScriptedExpert,
    "given": GivenExpert,
}
_WEIGHTS: dict[str, type[BaseModel]] = {
    "hub": HubWeights,
    "path": FolderWeights,
    "package": PackageWeights,
}


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    for at, part in reversed(list(enumerate(location[:-1]))):
        if part in _WEIGHTS and location[at - 1] == "weights":
            return list(_WEIGHTS[str(part)].model_fields)
        if part == "sampling":
            return list(SamplingSpec.model_fields)
        if part in _ENGINES:
            return list(_ENGINES[str(part)].model_fields)
    return list(PoolFile.model_fields)
