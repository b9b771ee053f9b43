"""Telling what a model thinks from what it says, in a whole text and in one that arrives in pieces."""

from __future__ import annotations

from ...agents.engines import Chunk

__all__ = ["Thinking"]

OPEN, CLOSE = "<think>", "</think>"


class Thinking:
    """Takes a streamed text piece by piece, and splits a leading `<think>…</think>` off it.

    Where the template has opened the thought in the prompt, a stream gives it as text, closing mark and all,
    though `split` finds it: nobody could tell it from an answer before its end, and no answer is held back so long.
    """

    def __init__(self) -> None:
        self._held = ""  # may turn out to begin a mark, or to be space around one
        self._state = "unknown"

    @staticmethod
    def split(text: str) -> tuple[str, str]:
        """What was thought, and what was said after it.

        Some templates open the thinking in the prompt: a closing mark without an opening one is read as
        the end of a thought too. A thought that was cut short has nothing said after it.

        Example:
            >>> Thinking.split("<think>2 + 2</think>4")
            ('2 + 2', '4')
        """
        body = text.lstrip()
        opened = body.startswith(OPEN)
        thought, closed, said = body.removeprefix(OPEN).partition(CLOSE)
        if closed and (opened or OPEN not in thought):
            return thought.strip(), said.lstrip()
        return (thought.strip(), "") if opened else ("", text)

    def take(self, piece: str) -> Chunk:
        """The next piece, as far as it is settled which of both it is."""
        text, self._held = self._held + piece, ""
        if self._state == "unknown":
            body = text.lstrip()
            if body.startswith(OPEN):
                self._state, text = "opened", body.removeprefix(OPEN)
            elif OPEN.startswith(body):
                self._held = text
                return Chunk()
            else:
                self._state = "said"
        if self._state in ("opened", "thought"):
            return self._think(text)
        if self._state == "closed":  # space after the closing mark belongs to neither
            text = text.lstrip()
            self._state = "said" if text else "closed"
        return Chunk(text=text)

    def finish(self) -> Chunk:
        """What was still held back."""
        held, self._held = self._held, ""
        if self._state in ("opened", "thought"):
            return Chunk(reasoning=held.rstrip())
        return Chunk(text=held)

    def _think(self, text: str) -> Chunk:
        if self._state == "opened":
            text = text.lstrip()
            if not text:
                return Chunk()
            self._state = "thought"
        thought, closed, said = text.partition(CLOSE)
        if closed:
            self._state = "closed"
            said = said.lstrip()
            if said:
                self._state = "said"
            return Chunk(reasoning=thought.rstrip(), text=said)
        at = text.rfind("<")  # it may begin the closing mark, which has no other
        kept = at if at >= 0 and CLOSE.startswith(text[at:]) else len(text)
        kept = len(text[:kept].rstrip())
        self._held = text[kept:]
        return Chunk(reasoning=text[:kept])
