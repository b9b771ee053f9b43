"""What has been seen: questions, embeddings and the references that resemble them."""

from .embed import Encoder, MiniLM, as_encoder, encode_texts
from .errors import InputError
from .index import Hit, VectorIndex
from .questions import AnswerKind, Question, fingerprint, read_questions
from .references import Neighbour, Neighbours, ReferenceSet, embedding_text

__all__ = [
    "AnswerKind",
    "Encoder",
    "Hit",
    "InputError",
    "MiniLM",
    "Neighbour",
    "Neighbours",
    "Question",
    "ReferenceSet",
    "VectorIndex",
    "as_encoder",
    "embedding_text",
    "encode_texts",
    "fingerprint",
    "read_questions",
]
