"""What has been seen: questions, embeddings and the references that resemble them."""

from .embed import MiniLM, encode_texts
from .errors import InputError
from .questions import AnswerKind, Question, fingerprint, read_questions

__all__ = [
    "AnswerKind",
    "InputError",
    "MiniLM",
    "Question",
    "encode_texts",
    "fingerprint",
    "read_questions",
]
