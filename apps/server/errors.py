"""What a client is told when there is no answer: a status and one sentence in OpenAI's words.

What an engine says about its failure may quote a prompt, a path or a key. It is never passed on; the kind
of failure is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from ...agents.engines import Failure

__all__ = ["ApiError", "ClientGone", "clean", "tell_failure", "tell_sentence"]

NAMES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
SENTENCES = {
    "load": (503, 'expert "{}" could not be loaded'),
    "engine": (502, 'expert "{}" failed while it worked on this'),
    "context": (400, 'the prompt and max_tokens do not fit the context window of expert "{}"'),
    "address": (502, 'the address of expert "{}" does not answer'),
    "timeout": (504, 'expert "{}" gave no answer in time'),
    "refused": (400, 'expert "{}" cannot do what the request asks for'),
    "missing": (502, 'the recordings of expert "{}" hold no answer to this'),
}
"""What is said of a failure, by its kind, and the status that it has where nobody else answered."""


class ApiError(Exception):
    """Ends a request with a status and a sentence."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        return {
            "error": {
                "message": self.message,
                "type": NAMES.get(self.status, "server_error"),
                "param": self.param,
                "code": self.code,
            }
        }

    def to_event(self) -> bytes:
        """The error as a server-sent event."""
        return f"data: {json.dumps(self.to_json())}\n\n".encode()

    def to_response(self) -> Response:
        """The error as a response. Its JSON is ASCII: half a surrogate pair in a name does no harm."""
        return Response(
            json.dumps(self.to_json()),
            self.status,
            headers=self.headers,
            media_type="application/json",
        )


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def tell_failure(failures: Mapping[str, Failure]) -> ApiError:
    """The error that stands for experts' failures, where there is nothing but failures.

    Args:
        failures: By expert; at least one.
    """
    kinds = {failure.kind for failure in failures.values()}
    status = SENTENCES[kinds.pop()][0] if len(kinds) == 1 else 502
    sentences = [tell_sentence(alias, failure) for alias, failure in failures.items()]
    may_help = any(failure.retryable for failure in failures.values())
    code = {400: "cannot_be_answered", 503: "expert_unavailable", 504: "timeout"}
    if {failure.kind for failure in failures.values()} == {"context"}:
        code[400] = "context_length_exceeded"
    return ApiError(
        status,
        "; ".join(sentences),
        code=code.get(status, "expert_failed"),
        # OpenAI's clients repeat a request that failed unless they are told that it is of no use.
        headers={} if status == 400 else {"x-should-retry": str(may_help).lower()},
    )


def tell_sentence(alias: str, failure: Failure) -> str:
    """What may be said of an expert's failure."""
    return SENTENCES[failure.kind][1].format(alias)


def clean(text: str) -> str:
    """Text that JSON in UTF-8 can carry: no half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")
