"""The whole panel as one LangChain chat model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, Field, PrivateAttr

from ...agents import Catalog, Policy, Pool, Profile
from ...graph import Resources
from ...graph.closing import NO_SPEAKER
from ...retrieval import InputError
from ..drawing import Drawing
from ..panel_answer import Form
from .asking import Asked, answer_all, name_panel, read_call
from .lazy_panel import LazyPanel
from .lazy_pool import LazyPool
from .messages import PROVIDER, to_single_chunk
from .pump import run_in_context
from .structure import bind_structure, to_choice, to_functions
from .together import TogetherModel
from .tracing import RunManager

__all__ = ["ChatExpertmix"]

OF_PANEL = (
    "k",
    "policy",
    "adaptive",
    "cost",
    "merging",
    "aggregator",
    "abstain_below",
    "experts",
    "extractor",
    "samples",
    "seed",
)
"""Fields that go to `make_resources` as they are."""


class ChatExpertmix(TogetherModel):
    """A panel of experts that answers as one chat model.

    A conversation becomes one question (`apps/conversation.py`). `batch` and `abatch` are one pass of the
    graph over all of their inputs, so that each expert gets one call; callbacks and caches are as for single
    calls, and in a trace the graph stands below the last of the inputs. `max_concurrency` of their config bounds
    how many inputs share a pass.

    Tools, and answers in a form, go to the panel's aggregator alone, who then has the last word
    (`graph/closing.py`).

    Calls may say `options=[…]` and `kind=…` of their question, and `format="answer"` for the answer alone;
    `bind` keeps them. How an answer came about is in `response_metadata["expertmix"]`.

    Made from a pool file or a catalog, the model opens a pool of its own at the first call; `close` it, or use
    the model as a context manager (plain or async). A pool or resources given are opened and left open.

    Example:
        >>> from expertmix.apps.chat import ChatExpertmix
        >>> with ChatExpertmix(pool="examples/pool.yaml", k=2) as model:  # doctest: +SKIP
        ...     print(model.invoke("What is 12 + 30?").content)
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    pool: LazyPool | Pool | Catalog | str | Path | None = Field(
        default=None, exclude=True, repr=False
    )
    """A pool file, a catalog, or a pool. Copies of a model share it."""
    resources: Any = Field(default=None, exclude=True, repr=False)
    """`Resources`: a panel that is put together already, instead of a pool and settings."""
    skill_profile: Any = Field(default=None, exclude=True, repr=False)
    """A `Profile` or its folder, which `asolve` calls `profile`: who is good at what. It may be given as `profile` here too, as long as it
    is no mapping; LangChain calls a mapping of a model's abilities so."""
    k: int | None = None
    policy: Policy = "skill"
    adaptive: Any = None
    cost: Any = None
    merging: Literal["posterior", "vote"] = "posterior"
    aggregator: str | None = None
    abstain_below: float = 0.0
    experts: tuple[str, ...] = ()
    extractor: Any = Field(default=None, exclude=True, repr=False)
    samples: int = 1
    seed: int = 0
    temperature: float | None = None
    """Of every expert; by default each has its own, as the other two."""
    top_p: float | None = None
    max_tokens: int | None = None
    """Lowers what an expert may write, and never raises it."""
    stop: list[str] | None = None
    """Strings that end what is told; experts write on, since their answers have to be read first."""
    streaming: bool = False
    """Whether calls stream where nobody asks for it; a panel's answer is one piece in any case."""
    format: Form = "text"
    """`text`: an answer to read, with who agreed and who did not. `answer`: the answer alone."""

    _kept: LazyPanel | None = PrivateAttr(default=None)

    def __init__(self, **fields: Any) -> None:
        if isinstance(fields.get("profile"), str | Path | Profile):
            fields["skill_profile"] = fields.pop("profile")
        if fields.get("pool") is not None:
            fields["pool"] = LazyPool.of(fields["pool"])
        super().__init__(**fields)
        if not isinstance(self.resources, Resources | None):
            raise InputError(f"resources must be Resources, not {type(self.resources).__name__}")
        if (self.pool is None) == (self.resources is None):
            raise InputError("a panel is made either of a pool or of resources: give one of them")
        usual = type(self).model_fields
        settings = [
            name
            for name in (*OF_PANEL, "skill_profile")
            if getattr(self, name) != usual[name].default
        ]
        if self.resources is not None and settings:
            raise InputError(f"resources have settings of their own: leave out {settings[0]}")

    @property
    def _panel(self) -> LazyPanel:
        settings = {name: getattr(self, name) for name in OF_PANEL}
        settings["profile"] = self.skill_profile
        origin: LazyPool | Resources | None = self.resources
        if origin is None:
            assert self.pool is not None
            origin = LazyPool.of(self.pool)
        wanted = LazyPanel(
            origin=origin,
            settings=settings,
            drawing=Drawing(
                temperature=self.temperature, top_p=self.top_p, most_tokens=self.max_tokens
            ),
        )
        # A copy with other settings is another panel over the same pool.
        if self._kept is None or not self._kept.is_like(wanted):
            self._kept = wanted
        return self._kept

    @property
    def model_name(self) -> str:
        """`expertmix/POLICY`, as the server calls the same panel."""
        return name_panel(self.policy if self.resources is None else self.resources.policy)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> ChatExpertmix:
        return self.__copy__()  # pools and profiles are shared, however deep the copy

    def open(self) -> Resources:
        """The panel, its pool open; calls do this by themselves. Blocks: a profile is read.

        Raises:
            InputError: settings, pool and profile do not fit together.
        """
        return self._panel.open()

    def close(self) -> None:
        """Unload what was loaded, if the pool is the model's own. A later call opens it again."""
        if self.pool is not None:
            LazyPool.of(self.pool).close()

    async def aclose(self) -> None:
        """As `close`."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> ChatExpertmix:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> ChatExpertmix:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The panel with tools that its aggregator may ask to have called; experts never see them.

        Raises:
            InputError: the panel has no aggregator, or something is no tool.
        """
        self._check_speaker()
        told = to_functions(tools)
        return self.bind(tools=told, tool_choice=to_choice(tool_choice, told), **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: str = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The panel with answers in a form, which its aggregator writes; see `structure.Method`.

        Raises:
            InputError: the panel has no aggregator, or there is no such method.
        """
        if kwargs:
            raise InputError(f"with_structured_output does not know {', '.join(kwargs)}")
        self._check_speaker()
        return bind_structure(self, schema, method=method, include_raw=include_raw, strict=strict)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        message = run_in_context(self._ask(messages, stop, run_manager, kwargs))
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        message = await self._ask(messages, stop, run_manager, kwargs)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        message = run_in_context(self._ask(messages, stop, run_manager, kwargs))
        yield ChatGenerationChunk(message=to_single_chunk(message))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        # A panel's answer is there all at once: nothing can be told before everybody has answered.
        message = await self._ask(messages, stop, run_manager, kwargs)
        yield ChatGenerationChunk(message=to_single_chunk(message))

    async def _ask(
        self,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        run_manager: RunManager,
        kwargs: Mapping[str, Any],
    ) -> AIMessage:
        """The answer to one message list, together with the others of its round if it is part of one."""
        asked = read_call(
            messages, self.stop if stop is None else stop, {"format": self.format, **kwargs}
        )
        return await self._ask_below(run_manager, asked)

    async def _answer_together(self, asked: Sequence[Asked]) -> list[AIMessage | Exception]:
        return await answer_all(asked, await asyncio.to_thread(self._panel.open))

    def _check_speaker(self) -> None:
        """Refuse tools before anything is asked, and without opening a pool."""
        if not self._panel.speaks:
            raise InputError(NO_SPEAKER)

    def _resolve_model_profile(self) -> ModelProfile | None:
        panel = self._panel
        return ModelProfile(
            tool_calling=panel.speaks,
            tool_choice=panel.speaks,
            structured_output=panel.speaks and panel.keeps_schemas,
        )

    @property
    def _llm_type(self) -> str:
        return PROVIDER

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """What answers depend on: caches find them by it."""
        names = {*OF_PANEL, "temperature", "top_p", "max_tokens", "stop", "format"}
        told = {name: repr(getattr(self, name)) for name in sorted(names)}
        return {"model_name": self.model_name, **told, "panel": self._panel.fingerprint}
