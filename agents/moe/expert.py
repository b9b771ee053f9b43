"""A mixture-of-experts model as a member of the pool, its experts re-mixed for every question."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...retrieval import Encoder, InputError, MiniLM, Question, ReferenceSet
from ..engines.base import Chunk, EngineError, Failure, Load, OptionScore, Reply, Request, Usage
from ..engines.decoding import Draft
from ..engines.loading import explain
from ..engines.transformers import Say, TransformersEngine
from .settings import RemixSettings

if TYPE_CHECKING:
    import torch

    from .letters import Letters
    from .remix import Remixer
    from .remixed import Remix

__all__ = ["RemixEngine", "tell_remix"]


class RemixEngine(TransformersEngine):
    """Answers multiple-choice questions by re-mixing; everything else as the plain model does.

    A request of style `letter` is decided by the option letters' log-probabilities under the routing
    that was found; one that is to be written has that routing on its last prompt token, and is decoded on
    by the model's own. Every such reply has `details["remix"]`: see `tell_remix`. Requests that are not
    about a multiple-choice question are the plain model's.

    The references are run once, when the engine is started for the first time; after that their states
    are read from `folder`.
    """

    def __init__(
        self,
        name: str,
        model: str | Path,
        *,
        references: Sequence[Question],
        remix: RemixSettings | None = None,
        folder: Path | None = None,
        budget_bytes: int = 8 << 30,
        encoder: Encoder | None = None,
        **settings: Any,
    ) -> None:
        """Store the settings; nothing is loaded before `start`.

        Args:
            name: For messages.
            model: A folder with safetensors, or a Hugging Face id: a mixture-of-experts model.
            references: Labelled questions; choices among them are used.
            remix: See there.
            folder: Where the references' states are kept; None keeps them in memory.
            budget_bytes: For the states.
            encoder: Finds the neighbours; MiniLM by default.
            settings: As for `TransformersEngine`.
        """
        super().__init__(name, model, **settings)
        self._references = [question for question in references if question.options]
        self._remix = remix or RemixSettings()
        self._folder, self._budget, self._encoder = folder, budget_bytes, encoder
        self._remixer: Remixer | None = None
        self._routings: dict[str, torch.Tensor] = {}
        self._cores: dict[str, torch.Tensor] = {}

    @property
    def remixer(self) -> Remixer:
        """What does the work, once the engine is started.

        Raises:
            RuntimeError: it is not.
        """
        if self._remixer is None:
            raise RuntimeError(f"{self.name} must be started before it is asked.")
        return self._remixer

    async def close(self) -> None:
        """Release model and states. Safe to call twice."""
        await super().close()
        self._remixer = None

    def _read(self) -> Load:
        import torch

        load = super()._read()
        loaded = self._loaded
        assert loaded is not None
        try:
            from .architecture import find_moe
            from .bank import build_bank
            from .bank_files import name_states
            from .letters import Letters
            from .remix import Remixer

            moe = find_moe(loaded.model)
            if moe.dtype == torch.float64:  # grouped products have no float64
                loaded.model.set_experts_implementation("eager")
            letters = Letters.of(
                loaded.tokenizer, chat_template=self._chat_template, window=loaded.window
            )
            usable = _usable(letters, self._references)
            first = moe.last(self._remix.layers)[0]
            folder = self._folder
            if folder is not None:
                folder = folder / name_states(moe, letters, usable, first)
            bank = build_bank(
                moe,
                letters,
                usable,
                first=first,
                folder=folder,
                budget_bytes=self._budget,
                batch=self._max_batch,
            )
            references = None
            if self._remix.search == "text":
                references = ReferenceSet.build(bank.questions, self._encoder or MiniLM())
            remixer = Remixer(moe, letters, bank, references, self._remix)
            remixer.check_references()
            self._remixer = remixer
        except Exception as error:
            self._loaded = None
            message = f"{self.name} could not be made ready for re-mixing: {explain(error)}"
            raise EngineError(Failure(kind="load", message=message)) from error
        return load

    def _work(self, requests: Sequence[Request], say: Say, stop: threading.Event) -> None:
        deciding = [request for request in requests if _decides_letters(request)]
        others = [request for request in requests if not _decides_letters(request)]
        for first in range(0, len(deciding), self._max_batch):
            for reply in self._decide(deciding[first : first + self._max_batch], stop):
                say((reply.request_id, Chunk(reply=reply)))
        writing = [request for request in others if _is_choice(request) and not request.options]
        told: dict[str, Any] = {}
        for first in range(0, len(writing), self._max_batch):
            if self._is_over(stop):
                break
            some = writing[first : first + self._max_batch]
            try:
                told |= self._plan_writing(some)
            except (
                Exception
            ) as error:  # then they are written by the model's own routing, and say so
                told |= {r.id: {"verdict": f"kept: it raised {explain(error)}"} for r in some}

        def say_more(news: tuple[str, Chunk]) -> None:
            from dataclasses import replace

            name, chunk = news
            if chunk.reply is not None and name in told and chunk.reply.failure is None:
                chunk = replace(chunk, reply=replace(chunk.reply, details={"remix": told[name]}))
            say((name, chunk))

        try:
            super()._work(others, say_more, stop)
        finally:
            self._routings.clear()
            self._cores.clear()

    def _decode(self, drafts: Sequence[Draft]) -> Iterator[list[Draft]]:
        with self._steered(drafts):
            yield from super()._decode(drafts)

    def _decide(self, requests: Sequence[Request], stop: threading.Event) -> list[Reply]:
        """Replies to requests that choose a letter; one that cannot be asked fails alone."""
        if self._is_over(stop):
            return [
                self._failed(r, "engine", "it was closed before the answer was finished.")
                for r in requests
            ]
        remixer, replies, questions = self.remixer, [], []
        asked: list[tuple[Request, int]] = []
        for request in requests:
            assert request.question is not None
            try:
                tokens = len(remixer.letters.encode(request.question))
            except InputError as error:
                replies.append(self._failed(request, "context", str(error)))
                continue
            asked.append((request, tokens))
            questions.append(request.question)
        if not asked:
            return replies
        try:
            remixes = remixer.remix(questions)
        except Exception as error:
            reason = f"it raised {explain(error)}"
            return replies + [self._failed(request, "engine", reason) for request, _ in asked]
        return replies + [
            _reply(request, tokens, remix)
            for (request, tokens), remix in zip(asked, remixes, strict=True)
        ]

    def _plan_writing(self, requests: Sequence[Request]) -> dict[str, Any]:
        """Find the routing of each prompt that will be written on; returns what there is to tell."""
        import torch

        from .letters import pad_prompts
        from .states import capture

        remixer, loaded = self.remixer, self._loaded
        assert loaded is not None
        prompts: list[list[int]] = []
        kept: list[Request] = []
        for request in requests:
            with contextlib.suppress(InputError):  # the plain engine will say what is wrong
                ids = self._prompt(request)
                if ids and self._room(ids) >= 1:
                    prompts.append(ids)
                    kept.append(request)
        if not kept:
            return {}
        questions = [request.question for request in kept if request.question is not None]
        ids_BT, mask_BT = pad_prompts(prompts, loaded.model.device)
        states = capture(
            remixer.moe,
            ids_BT,
            mask_BT,
            first=remixer.engine.first,
            tokens_O=remixer.engine.tokens_O,
        )
        neighbourhood = remixer.find(questions, states)
        batch = remixer.solve(questions, states, neighbourhood)
        cores_QCE = remixer.core_of(batch.routing_before_QCE)
        told: dict[str, Any] = {}
        for place, remix in enumerate(remixer.explain(questions, neighbourhood, batch)):
            told[kept[place].id] = tell_remix(remix)
            if remix.changed:
                self._routings[kept[place].id] = batch.routing_after_QCE[place].to(torch.float32)
                self._cores[kept[place].id] = cores_QCE[place]
        return told

    @contextlib.contextmanager
    def _steered(self, drafts: Sequence[Draft]) -> Generator[None]:
        """Put the routings that were found on the last prompt token of a batch that is padded at the left."""
        import torch

        from .gates import Steering, steer

        rows = [row for row, draft in enumerate(drafts) if draft.request.id in self._routings]
        if not rows:
            yield
            return
        longest = max(len(draft.prompt_ids) for draft in drafts)
        steering = Steering(
            layers=self.remixer.engine.layers,
            rows_R=torch.tensor(rows),
            positions_R=torch.full((len(rows),), longest - 1),
            routing_RCE=torch.stack([self._routings[drafts[row].request.id] for row in rows]),
            core_RCE=torch.stack([self._cores[drafts[row].request.id] for row in rows]),
            keeps_mass=self._remix.keeps_mass,
        )
        with steer(self.remixer.moe, steering):
            yield


def _usable(letters: Letters, references: Sequence[Question]) -> list[Question]:
    """Those that can be asked.

    Raises:
        InputError: none can; says why the first cannot.
    """
    usable: list[Question] = []
    reason = ""
    for question in references:
        try:
            letters.encode(question)
        except InputError as error:
            reason = reason or f" (the first: {error})"
        else:
            usable.append(question)
    if not usable:
        raise InputError(
            "there are no multiple-choice questions among its references that it can be asked; give some "
            f"with options and gold answers{reason}."
        )
    return usable


def tell_remix(remix: Remix) -> dict[str, Any]:
    """What became of a question, as plain JSON values.

    `verdict`, `before` and `after` (letters), `probabilities_before` and `_after`, `neighbours` (id and
    similarity, held-back ones last), `curve` (the surrogate from step to step), `pathway_before` and
    `pathway_after` (critical layer × expert).
    """
    return {
        "verdict": str(remix.verdict),
        "before": remix.before,
        "after": remix.after,
        "probabilities_before": [round(share, 6) for share in remix.probabilities_before],
        "probabilities_after": [round(share, 6) for share in remix.probabilities_after],
        "neighbours": [[name, round(similarity, 4)] for name, similarity in remix.neighbours],
        "curve": [round(value, 6) for value in remix.curve],
        "pathway_before": _plain(remix.pathway_before_CE),
        "pathway_after": _plain(remix.pathway_after_CE),
    }


def _reply(request: Request, tokens: int, remix: Remix) -> Reply:
    import math

    scores = [
        OptionScore(logprob=math.log(max(share, 1e-30)), tokens=1)
        for share in remix.probabilities_after
    ]
    return Reply(
        request_id=request.id,
        scores=tuple(scores),
        usage=Usage(prompt_tokens=tokens + len(scores)),
        details={"remix": tell_remix(remix)},
    )


def _plain(pathway_CE: torch.Tensor) -> list[list[float]]:
    return [[round(share, 5) for share in row] for row in pathway_CE.tolist()]


def _is_choice(request: Request) -> bool:
    return request.question is not None and len(request.question.options) >= 2


def _decides_letters(request: Request) -> bool:
    """Whether the request's options are the letters of its question's."""
    if request.question is None or not request.options:
        return False
    return request.options == tuple(f" {letter}" for letter in request.question.letters)
