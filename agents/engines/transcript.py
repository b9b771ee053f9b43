"""A text that grows token by token, and knows where its stop strings cut it off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Transcript"]

INCOMPLETE = "\ufffd"
"""What a tokenizer writes for bytes that are not a whole character yet."""


class Transcript:
    """Text of the tokens so far, without special tokens.

    Decoding a token alone loses spaces and splits characters, so each is decoded together with the
    one before it, and text is kept back until its last character is whole.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self.text = ""
        """All of it; ends before the stop string once `stopped`."""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(filter(None, stop))
        self._ids: list[int] = []
        self._context = 0  # where the tokens begin that are decoded along with the next
        self._read = 0  # tokens whose text is in `text`
        self._given = 0  # characters that `take` has handed out

    def add(self, token: int) -> None:
        """Append one token."""
        self._ids.append(token)
        grown = self._pending()
        if grown and not grown.endswith(INCOMPLETE):
            self._append(grown)

    def finish(self) -> None:
        """Append what was kept back, even if its last character never became whole."""
        if not self.stopped and (rest := self._pending()):
            self._append(rest)

    def take(self, *, final: bool = False) -> str:
        """Return the text since the last call; unless `final`, without a possible stop string's start."""
        end = len(self.text) if final or self.stopped else len(self.text) - self._doubtful()
        piece = self.text[self._given : end]
        self._given = max(self._given, end)
        return piece

    def _pending(self) -> str:
        before = self._decode(self._ids[self._context : self._read])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _append(self, piece: str) -> None:
        searched = max(0, len(self.text) - max(map(len, self._stop), default=0))
        self.text += piece
        self._context, self._read = self._read, len(self._ids)
        found = [at for stop in self._stop if (at := self.text.find(stop, searched)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _doubtful(self) -> int:
        """Length of the longest end of the text that may turn out to begin a stop string."""
        for length in range(max(map(len, self._stop), default=1) - 1, 0, -1):
            if any(stop.startswith(self.text[-length:]) for stop in self._stop):
                return min(length, len(self.text))
        return 0

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text
