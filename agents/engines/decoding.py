"""Draws tokens from a transformers model for many requests at once, each by its own rules.

`model.generate` has one temperature, one seed and one list of stop strings for a whole batch; here
every request has its own, and its random numbers do not depend on what else is in the batch. Must
run under `torch.inference_mode()`. Shapes: B requests, T prompt tokens, V vocabulary, O options,
L option tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .base import OptionScore, Reply, Request, TokenLogprob, Usage
from .tool_reading import read_tool_calls, settled_length
from .transcript import Transcript

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Draft", "decode", "score_options"]

GREEDY_BELOW = 1e-5
"""Temperature; dividing by less overflows, and vLLM draws the line at the same place."""


class Draft:
    """One request's answer while it is being written."""

    def __init__(
        self,
        request: Request,
        prompt_ids: Sequence[int],
        limit: int,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """Store what is needed.

        Args:
            request: What is asked.
            prompt_ids: Its encoded messages, at least one token.
            limit: Most tokens that may be generated, at least one.
            tokenizer: Turns tokens into text.
        """
        import torch

        self.request = request
        self.prompt_ids = prompt_ids
        self.transcript = Transcript(tokenizer, request.sampling.stop)
        self.finish: Literal["stop", "length"] | None = None
        self._limit = limit
        self._tokenizer = tokenizer
        self._logprobs: list[TokenLogprob] = []
        self._number = 0
        self._written = ""  # what may be told, but for what may begin a tool call
        self._told = 0  # characters that `take` has handed out
        self._generator = (
            torch.Generator()
        )  # of its own, so that torch's global one stays untouched
        if request.sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(request.sampling.seed % 2**63)

    def draw(self, logits_V: torch.Tensor, ends: frozenset[int]) -> int:
        """Choose the next token, add it, and see whether it was the last."""
        token = self._choose(logits_V)
        if self.request.sampling.logprobs is not None:
            self._logprobs.append(self._explain(logits_V, token))
        self._number += 1
        if token in ends:
            self.finish = "stop"
        else:
            self.transcript.add(token)
            self.finish = "length" if self._number >= self._limit else None
        if self.finish is not None:
            self.transcript.finish()
        if self.transcript.stopped:
            self.finish = "stop"
        return token

    def reply(self) -> Reply:
        """The finished answer."""
        assert self.finish is not None
        reply = Reply(
            request_id=self.request.id,
            text=self.transcript.text,
            finish=self.finish,
            usage=Usage(prompt_tokens=len(self.prompt_ids), completion_tokens=self._number),
            logprobs=tuple(self._logprobs),
        )
        return read_tool_calls(self.request, reply)

    def take(self) -> str:
        """What has been settled of the answer's text since the last call."""
        self._written += self.transcript.take(final=self.finish is not None)
        if self.finish is None:
            settled = self._written[: settled_length(self.request, self._written)]
        else:
            settled = self.reply().text
        piece = settled[self._told :]
        self._told += len(piece)
        return piece

    def _choose(self, logits_V: torch.Tensor) -> int:
        import torch

        sampling = self.request.sampling
        if sampling.temperature < GREEDY_BELOW:
            return int(logits_V.argmax())
        probs_V = torch.softmax(logits_V / sampling.temperature, dim=-1)
        if sampling.top_p < 1:
            sorted_V, order_V = probs_V.sort(descending=True)
            # A token stays if the likelier ones do not reach top_p by themselves; one always stays.
            beyond_V = sorted_V.cumsum(-1) - sorted_V >= max(sampling.top_p, 1e-6)
            probs_V[order_V[beyond_V]] = 0.0
        return int(torch.multinomial(probs_V, 1, generator=self._generator))

    def _explain(self, logits_V: torch.Tensor, token: int) -> TokenLogprob:
        """Log-probabilities of the model itself, before temperature and top_p."""
        logprobs_V = logits_V.log_softmax(-1)
        number = min(self.request.sampling.logprobs or 0, len(logprobs_V))
        values, ids = logprobs_V.topk(number)
        top = zip(map(self._word, ids.tolist()), values.tolist(), strict=True)
        return TokenLogprob(
            token=self._word(token), logprob=float(logprobs_V[token]), top=tuple(top)
        )

    def _word(self, token: int) -> str:
        word = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        assert isinstance(word, str)
        return word


@dataclass(slots=True)
class _Batch:
    """What the model needs to go on: the cache, and which positions of it are padding."""

    cache: Any
    mask_BT: torch.Tensor
    logits_BV: torch.Tensor
    """Of the last position, float32, on the CPU."""


def decode(
    model: PreTrainedModel, drafts: Sequence[Draft], ends: frozenset[int]
) -> Iterator[list[Draft]]:
    """Write all drafts together, one token each per step.

    Finished drafts leave the batch. The caller may stop iterating at any step.

    Args:
        model: In eval mode.
        drafts: Not started; are written to.
        ends: Tokens that end an answer.

    Yields:
        After each step, the drafts that got a token in it.
    """
    import torch

    active = list(drafts)
    batch = _prefill(model, [draft.prompt_ids for draft in active])
    while True:
        tokens = [
            draft.draw(logits_V, ends)
            for draft, logits_V in zip(active, batch.logits_BV, strict=True)
        ]
        yield active
        going = [row for row, draft in enumerate(active) if draft.finish is None]
        if not going:
            return
        if len(going) < len(active):
            rows = torch.tensor(going, device=model.device)
            batch.cache.batch_select_indices(rows)
            batch.mask_BT = batch.mask_BT[rows]
            active = [active[row] for row in going]
        _step(model, batch, [tokens[row] for row in going])


def score_options(
    model: PreTrainedModel, prompt_ids: Sequence[int], options: Sequence[Sequence[int]]
) -> list[OptionScore]:
    """Log-likelihood of each option's tokens after the prompt, which is run only once.

    Args:
        model: In eval mode.
        prompt_ids: At least one token.
        options: At least one, each of at least one token.
    """
    import torch

    batch = _prefill(model, [prompt_ids])
    first_V = batch.logits_BV[0].log_softmax(-1)
    totals = [float(first_V[option[0]]) for option in options]
    longest = max(len(option) for option in options) - 1
    if longest > 0:
        # Padding at the right is never attended to by the tokens before it.
        rows = [[*option[:-1], *[option[0]] * (longest + 1 - len(option))] for option in options]
        ids_OL = torch.tensor(rows, device=model.device)
        batch.cache.batch_repeat_interleave(len(options))
        start = len(prompt_ids)
        output: Any = model(
            input_ids=ids_OL,
            attention_mask=torch.ones(
                (len(options), start + longest), dtype=torch.long, device=model.device
            ),
            position_ids=torch.arange(start, start + longest, device=model.device).expand_as(
                ids_OL
            ),
            past_key_values=batch.cache,
            use_cache=True,
        )
        logprobs_OLV = output.logits.float().log_softmax(-1).cpu()
        for row, option in enumerate(options):
            for position, token in enumerate(option[1:]):
                totals[row] += float(logprobs_OLV[row, position, token])
    return [
        OptionScore(logprob=total, tokens=len(option))
        for total, option in zip(totals, options, strict=True)
    ]


def _prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> _Batch:
    """Run the prompts, padded at the left so that all end at the same place."""
    import torch

    longest = max(map(len, prompts))
    gaps = [longest - len(prompt) for prompt in prompts]
    # What stands in the gaps does not matter: they are masked.
    rows = [[*[0] * gap, *prompt] for gap, prompt in zip(gaps, prompts, strict=True)]
    masks = [[0] * gap + [1] * (longest - gap) for gap in gaps]
    ids_BT = torch.tensor(rows, device=model.device)
    mask_BT = torch.tensor(masks, device=model.device)
    output: Any = model(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        position_ids=(mask_BT.cumsum(-1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    return _Batch(output.past_key_values, mask_BT, _last(output))


def _step(model: PreTrainedModel, batch: _Batch, tokens: Sequence[int]) -> None:
    """Feed one token per row and replace the batch's logits."""
    import torch

    ids_B1 = torch.tensor(tokens, device=model.device)[:, None]
    batch.mask_BT = torch.cat([batch.mask_BT, torch.ones_like(ids_B1)], dim=1)
    output: Any = model(
        input_ids=ids_B1,
        attention_mask=batch.mask_BT,
        position_ids=batch.mask_BT.sum(-1, keepdim=True) - 1,
        past_key_values=batch.cache,
        use_cache=True,
        logits_to_keep=1,
    )
    batch.cache, batch.logits_BV = output.past_key_values, _last(output)


def _last(output: Any) -> torch.Tensor:
    # On the CPU and in float32, so that drawing is the same on every device.
    return output.logits[:, -1].float().cpu()
