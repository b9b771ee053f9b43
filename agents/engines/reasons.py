"""Why something failed, in one sentence: from an exception, or from how a process ended."""

from __future__ import annotations

import re
import signal

__all__ = ["exit_reason", "root_reason"]

_LONGEST = 300  # characters
# A full stop ends the sentence; "e.g. Llama", "U.S. English" and "v1. 2" do not.
_SENTENCE_END = re.compile(r"(?<=[a-z0-9)\]'\"]{2}[.!?])\s+(?=[A-Z])|\n")


def root_reason(error: BaseException) -> str:
    """Say what really went wrong: the innermost exception's message, cut to its first sentence.

    Libraries wrap what happened in ever more general errors; the one that started the chain names
    the file or the setting. The exception's type is named where its message alone says too little.
    """
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    text = _message(error).strip()
    sentence = (_SENTENCE_END.split(text)[0] if text else "").rstrip(" .:")
    if not sentence or isinstance(error, (LookupError, OSError, TypeError)):
        sentence = f"{type(error).__name__}: {sentence}".rstrip(": ")
    return sentence if len(sentence) <= _LONGEST else sentence[: _LONGEST - 1] + "…"


def _message(error: BaseException) -> str:
    details = getattr(error, "errors", None)  # pydantic: the message without the frame around it
    if callable(details):
        found = details()
        if isinstance(found, list) and found and isinstance(found[0], dict):
            return str(found[0].get("msg", error)).removeprefix("Value error, ")
    return str(error)


def exit_reason(code: int | None) -> str:
    """Say how a process ended.

    Args:
        code: As `subprocess.Popen.returncode`: negative for a signal; None when nobody saw it.
    """
    if code is None:
        return "its process is gone"
    if code >= 0:
        return f"its process ended with exit code {code}"
    hint = ""
    if -code == signal.SIGKILL:
        hint = "; often the machine ran out of memory"
    elif -code in (signal.SIGILL, signal.SIGSEGV, signal.SIGABRT):
        hint = "; native code crashed"
    return f"its process was killed by signal {-code} ({signal.Signals(-code).name}){hint}"
