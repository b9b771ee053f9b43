"""A pool as a model of EleutherAI's lm-evaluation-harness: `lm_eval --model expertmix --model_args pool=…`.

All requests of a kind go to the pool in one call, so every model is loaded once and batched by its engine;
`--batch_size` therefore says nothing here. Importing this module registers the name `expertmix`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.api_models import JsonChatStr
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from ...agents import Pool, derive_seed
from ...agents.engines import Message, Reply, Request, Sampling
from ...graph import Solution
from ...retrieval import InputError, Question
from .chats import join_turns, read_turns
from .likelihoods import Likelihoods, Wanted
from .spokesman import Saying, find_loss, speak
from .subject import Subject

__all__ = ["ExpertmixLM"]

UNDERSTOOD = ("until", "do_sample", "temperature", "top_p", "seed", "max_gen_toks")
IDLE_IF_GREEDY = ("top_p", "top_k", "min_p", "typical_p", "seed")
"""What says nothing where the likeliest token is always taken."""

Kind = Literal["text", "number"]
Failed = Literal["raise", "wrong"]


class ExpertmixLM(LM):
    """One expert of a pool, or its panel.

    Without a chat template a context is one user turn; for an expert with `chat_template: plain` that is the
    bare text, any other has its own template around it. With `--apply_chat_template` contexts come as the
    turns of a chat. Either way the pool's engines apply their template, once.

    Args:
        pool: A pool file, or an open pool.
        expert: An alias. None is the panel, which answers each context as one open question.
        panel: Says the same, for those who like to be explicit.
        say: What a panel gives: its `answer` alone, or the whole `text` of its spokesman.
        kind: How a panel's answers are read: as short `text`, or as a `number`.
        max_gen_toks: Tokens of an expert's answer where a task does not say.
        store: File that keeps every reply, so that a second run asks nothing twice.
        failed: Whether requests without a reply end the run (`raise`), or count as `wrong`.
        seed: Of what is drawn.
        batch_size: What lm_eval hands to every model, as are the next two; without meaning here, where
            engines batch and the pool file says where they run.
        max_batch_size: As `batch_size`.
        device: As `batch_size`.
        settings: Names and values of `PanelSettings`: profile, k, policy, adaptive, aggregator, ….

    Raises:
        InputError: as `Subject`, or a value that none of these takes.
    """

    def __init__(
        self,
        pool: Pool | str | Path,
        expert: str | None = None,
        *,
        panel: bool | None = None,
        say: Saying = "answer",
        kind: Kind = "text",
        max_gen_toks: int = 256,
        store: str | Path | None = None,
        failed: Failed = "raise",
        seed: int = 0,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if panel is not None and panel is (expert is not None):
            raise InputError("give either expert=ALIAS or panel=true")
        _check_choice("say", say, get_args(Saying))
        _check_choice("kind", kind, get_args(Kind))
        _check_choice("failed", failed, get_args(Failed))
        if expert is None:
            settings["seed"] = seed
        self.subject = Subject(pool, expert=expert, store=store, settings=settings)
        self._say: Saying = say
        self._kind: Kind = kind
        self._max_tokens = max_gen_toks
        self._accepts_failures = failed == "wrong"
        self._seed = seed

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests: ours hold the turns of a chat, whoever the expert is."""
        return "expertmix"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Nothing to show, since the engines have their own.

        Raises:
            InputError: one was named.
        """
        if isinstance(chat_template, str):
            raise InputError(
                f'the chat template "{chat_template}" cannot be chosen here: give --apply_chat_template '
                "without a name, and chat_template in the pool file"
            )
        return ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> Any:
        """The turns as they are, in the wrapping that lm_eval's own API models use.

        A final assistant turn (a task's `gen_prefix`) is continued by the engine, as it always is.
        """
        return JsonChatStr(json.dumps(chat_history, ensure_ascii=False))

    def get_model_info(self) -> dict[str, Any]:
        """Who was examined and what that cost, for the `config` of the harness's results."""
        return {"expertmix": self.subject.to_json()}

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Summed natural-log probability of each continuation, and whether it is the greedy one.

        Continuations of the same context are scored in one request. Whether one is greedy is exact for a
        document's only continuation, which is what the accuracy of such tasks is made of: it is if its
        probability is over one half, or else if the expert, told to write as many tokens, writes it. Beside
        others (multiple choice), True is as certain, and False means that it was not looked into.

        Raises:
            InputError: a panel was asked, or replies are missing.
        """
        if self.subject.expert is None:
            raise InputError(
                "a panel has no log-likelihood of its own: choose tasks that generate (their output_type "
                "is generate_until), or give expert=ALIAS to score with one expert"
            )
        likelihoods = Likelihoods([_read_wanted(instance) for instance in requests])

        async def score() -> None:
            scored = await self._ask(likelihoods.requests, "scored", disable_tqdm)
            unclear = likelihoods.read(scored)
            likelihoods.read_written(await self._ask(unclear, "written", disable_tqdm))

        self.subject.run(score)
        return likelihoods.found

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Refused: a pool's engines are asked in chats, and a running text is none.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "a pool cannot give the perplexity of a running text, since its experts are asked in chats: use "
            "lm_eval's own models `hf` or `vllm` for such tasks"
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the expert writes, or what the panel answers, to each context.

        A panel asks its experts as `expertmix solve` does, with their own sampling; of a task's settings it
        heeds the stop strings.

        Raises:
            InputError: settings that no engine here knows, or replies are missing.
        """
        given = [_read(instance) for instance in requests]
        chats = [_read_context(context) for context, _ in given]
        samplings = [_read_sampling(settings, self._max_tokens) for _, settings in given]
        if self.subject.expert is None:
            solutions = self._solve([join_turns(chat) for chat in chats])
            pairs = zip(solutions, samplings, strict=True)
            return [speak(solution, self._say, stops=s.stop) for solution, s in pairs]
        asked = self._draw(chats, samplings)
        replies = self.subject.run(lambda: self._ask(asked, "answered", disable_tqdm))
        return [reply.text for reply in replies]

    def _draw(
        self, chats: Sequence[tuple[Message, ...]], samplings: Sequence[Sampling]
    ) -> list[Request]:
        """Requests whose repeats differ, and come back equal in a second run."""
        repeats: Counter[str] = Counter()
        asked: list[Request] = []
        for number, (chat, sampling) in enumerate(zip(chats, samplings, strict=True)):
            if sampling.temperature > 0:
                text = json.dumps(chat)
                base = self._seed if sampling.seed is None else sampling.seed
                sampling = replace(sampling, seed=derive_seed(base, text, repeats[text]))
                repeats[text] += 1
            asked.append(Request(id=str(number), messages=chat, sampling=sampling))
        return asked

    def _solve(self, texts: Sequence[str]) -> list[Solution]:
        questions = [
            Question(id=str(number), text=text, kind=self._kind)
            for number, text in enumerate(texts)
        ]
        solutions = self.subject.run(lambda: self.subject.solve(questions))
        self._check([find_loss(solution) for solution in solutions])
        return solutions

    async def _ask(self, requests: Sequence[Request], what: str, is_quiet: bool) -> list[Reply]:
        if not requests:
            return []
        name = f"{self.subject.expert}, {what}"
        with tqdm(total=len(requests), desc=name, disable=is_quiet) as bar:
            replies = await self.subject.ask(requests, lambda _: cast("None", bar.update()))
        self._check([r.failure.message if r.failure is not None else None for r in replies])
        return replies

    def _check(self, losses: Sequence[str | None]) -> None:
        """Refuse to go on where replies are missing: the score would be about something else."""
        reasons = Counter(loss for loss in losses if loss is not None)
        if reasons and not self._accepts_failures:
            raise InputError(
                f"{reasons.total()} of {len(losses)} requests to {self.subject} have no reply, most of "
                f"them because: {reasons.most_common(1)[0][0]}; run it again (store=FILE in --model_args "
                "keeps what is finished), or give failed=wrong to count them as wrong"
            )


def _check_choice(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _read(instance: Instance) -> tuple[str | JsonChatStr, Any]:
    """The two arguments of a request: a context, and its continuation or settings."""
    if len(instance.args) != 2:
        raise InputError("experts see no pictures and hear no sound: choose tasks of text alone")
    context, other = instance.args
    return context, other


def _read_context(context: str | JsonChatStr) -> tuple[Message, ...]:
    if isinstance(context, JsonChatStr):
        return read_turns(context.prompt)
    return (Message(role="user", content=context),)


def _read_wanted(instance: Instance) -> Wanted:
    """A continuation, with the spaces that end a bare text before it, where tokenizers expect them.

    lm_eval's own models do the same (`TemplateLM._encode_pair`).
    """
    context, continuation = _read(instance)
    group = None if instance.task_name is None else (instance.task_name, instance.doc_id)
    if isinstance(context, str):
        kept = context.rstrip()
        context, continuation = kept, context[len(kept) :] + continuation
    return Wanted(_read_context(context), continuation, group)


def _read_sampling(settings: Mapping[str, Any], max_tokens: int) -> Sampling:
    """A task's `generation_kwargs`.

    Raises:
        InputError: one that no engine here knows; to drop it would change what is measured.
    """
    told = dict(normalize_gen_kwargs(dict(settings), default_max_gen_toks=max_tokens))
    temperature = float(cast("float", told.get("temperature", 0.0)))
    if told.pop("num_beams", 1) != 1:
        raise InputError("engines of a pool know no beam search: leave num_beams out")
    for name in told:
        if name not in UNDERSTOOD and not (temperature == 0 and name in IDLE_IF_GREEDY):
            raise InputError(
                f'engines of a pool do not know the setting "{name}"; they know {", ".join(UNDERSTOOD)}'
            )
    stops = cast("list[str | None]", told["until"])
    return Sampling(
        temperature=temperature,
        top_p=float(cast("float", told.get("top_p", 1.0))) if temperature else 1.0,
        max_tokens=int(cast("int", told["max_gen_toks"])),
        stop=tuple(stop for stop in stops if stop),
        seed=cast("int | None", told.get("seed")) if temperature else None,
    )


register_model("expertmix")(ExpertmixLM)  # as a decorator it would hide the class behind `LM`
