"""What a pool file says, key by key."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from ...retrieval import InputError
from ..engines import Sampling
from ..moe.settings import RemixSettings
from ..reason import AnswerStyle
from .weights import FolderWeights, HubWeights, PackageWeights

__all__ = [
    "ENGINES",
    "WEIGHTS",
    "ChatModelExpert",
    "DeviceSpec",
    "ExpertSpec",
    "GivenExpert",
    "OpenAIExpert",
    "PoolFile",
    "RemixSpec",
    "ReplayExpert",
    "SamplingSpec",
    "ScriptedExpert",
    "SplitSpec",
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
        description="reason: write an answer. score: choose the likeliest option (needs local weights). "
        "letter: the same by the letters of the listed options.",
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


class SplitSpec(_Strict):
    """How dense weights are made into a mixture of experts; see `expertmix moe build`."""

    layers: int = Field(8, ge=1, description="Layers with experts, from the top.")
    experts: int = Field(16, ge=2, description="Routed experts of such a layer.")
    top_k: int = Field(8, ge=1, description="How many of them are on for a token.")

    @model_validator(mode="after")
    def _has_enough_experts(self) -> SplitSpec:
        if self.top_k > self.experts:
            raise InputError(
                f"split: {self.top_k} experts cannot be on where there are {self.experts}."
            )
        return self


class RemixSpec(RemixSettings):
    """Re-mixing the experts inside a mixture-of-experts model (C3PO), and whom to follow."""

    references: str = Field(
        description="Questions with gold answers (.jsonl, .parquet), beside the pool file."
    )
    budget_gib: float = Field(8.0, gt=0, description="Room for the references' states on disk.")

    def to_settings(self) -> RemixSettings:
        """What the method itself needs."""
        return RemixSettings(**self.model_dump(exclude={"references", "budget_gib"}))


class _LocalExpert(_Expert):
    weights: Weights = Field(
        description="{hub, revision} with 40 hexadecimal digits, {path} under root, or {package}."
    )
    merge: str | None = Field(
        None,
        description="Folder of a LoRA adapter to add to the weights: another model, at full speed.",
    )
    split: SplitSpec | None = Field(
        None, description="Make dense weights into a mixture of experts, once, in the cache."
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
    remix: RemixSpec | None = Field(
        None, description="Re-mix the experts inside the model for every multiple-choice question."
    )


class OpenAIExpert(_Expert):
    """A model behind an OpenAI-compatible address."""

    engine: Literal["openai"]
    address: str = Field(pattern=r"^https?://", description="Up to and including /v1.")
    model: str
    api_key_env: str | None = Field(None, description="Environment variable that holds the key.")
    timeout: float = Field(120.0, gt=0)
    retries: int = Field(4, ge=0)
    concurrency: int = Field(
        8, ge=1, description="Requests at one time; an address has the most that its experts say."
    )
    requests_per_minute: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="What the address allows to all its experts together; one of them has to say it.",
    )
    tokens_per_minute: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="The same for tokens of prompts and answers.",
    )
    one_model_at_a_time: bool = Field(
        False,
        description="The address loads one model at a time, as llama-swap does: its models are asked in turns.",
    )


class ChatModelExpert(_Expert):
    """A LangChain chat model, by the name that `init_chat_model` takes."""

    engine: Literal["chat_model"]
    model: str = Field(pattern=r"^[\w.-]+:.+", description='"provider:model".')


class ReplayExpert(_Expert):
    """Recorded answers of a real model."""

    engine: Literal["replay"]
    table: str = Field(description="Folder under root with outcomes.parquet.")
    model: str


class ScriptedExpert(_Expert):
    """A double for tests: answers from a JSON file."""

    engine: Literal["scripted"]
    script: str
    latency: float = Field(0.0, ge=0, description="Seconds from a call to its replies.")
    load_seconds: float = Field(0.0, ge=0)
    memory_gib: float | None = Field(
        None, gt=0, description="If given, it takes turns as a model that needs this much."
    )


class GivenExpert(_Expert):
    """An engine that the program hands to `Pool(engines={alias: engine})`."""

    engine: Literal["given"]
    memory_gib: float | None = Field(
        None, gt=0, description="If given, it takes turns as a model that needs this much."
    )


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


class DeviceSpec(_Strict):
    """A device that models may be loaded on."""

    name: str = Field(pattern=r"^(cpu|cuda:\d+)$", description="cpu, cuda:0, cuda:1, …")
    memory_gib: float | None = Field(None, gt=0, description="Default: free memory.")
    parallel: int | None = Field(None, ge=1, description="As the pool's, for this device.")


class PoolFile(_Strict):
    """The file's contents, as they stand."""

    root: str = Field(
        ".",
        description="Folder that local weights and recordings must lie in; default: this file's.",
    )
    memory_gib: float | None = Field(
        None, gt=0, description="What all loaded models may take together; default: free memory."
    )
    max_resident: int | None = Field(
        None, ge=1, description="Models kept loaded at once on a device; default: what fits."
    )
    devices: tuple[DeviceSpec, ...] = Field(
        (), description="Devices to use; default: all GPUs, or the processor where there is none."
    )
    parallel: int | None = Field(
        None,
        ge=1,
        description="Engines that work at the same time on a device; default: 1 on a GPU, on a processor "
        "one for each OMP_NUM_THREADS cores.",
    )
    max_wait: float = Field(
        30.0,
        gt=0,
        description="Seconds after which a waiting request makes a loaded model finish and give way.",
    )
    min_residency: float = Field(
        2.0, ge=0, description="Seconds that a model stays loaded before it has to give way."
    )
    max_queued: int = Field(
        100_000, ge=1, description="Requests that may wait for models; further callers wait."
    )
    stall_seconds: float = Field(
        300.0,
        gt=0,
        description="Seconds without a sign of life after which an engine counts as hung.",
    )
    swap_in_place: bool = Field(
        True, description="Reload weights into an engine that holds others of the same shape."
    )
    sleep: bool = Field(
        True, description="Let engines sleep instead of ending them, where the platform has it."
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
    skills_by: Alias | None = Field(
        None,
        description="Expert that names the skills in one structured answer, out of `skills` if given.",
    )
    experts: tuple[ExpertSpec, ...] = Field(min_length=1)


ENGINES: dict[str, type[BaseModel]] = {
    "vllm": VllmExpert,
    "transformers": TransformersExpert,
    "openai": OpenAIExpert,
    "chat_model": ChatModelExpert,
    "replay": ReplayExpert,
    "scripted": ScriptedExpert,
    "given": GivenExpert,
}
WEIGHTS: dict[str, type[BaseModel]] = {
    "hub": HubWeights,
    "path": FolderWeights,
    "package": PackageWeights,
}
