"""What has been seen: questions, embeddings and the references that resemble them."""

from .errors import InputError
from .questions import AnswerKind, Question, fingerprint, read_questions

__all__ = ["AnswerKind", "InputError", "Question", "fingerprint", "read_questions"]
