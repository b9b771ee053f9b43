"""What has been seen: questions, embeddings and the references that resemble them."""

from .embed import Encoder, MiniLM, as_encoder, encode_texts
from .errors import InputError
from .given import GivenVectors
from .index import Hit, VectorIndex
from .neighbours import Neighbour, Neighbours
from .questions import AnswerKind, Question, fingerprint, read_questions
from .references import ReferenceSet, embedding_text
from .retriever import ReferenceRetriever

__all__ = [
    "AnswerKind",
    "Encoder",
    "GivenVectors",
    "Hit",
    "InputError",
    "MiniLM",
    "Neighbour",
    "Neighbours",
    "Question",
    "ReferenceRetriever",
    "ReferenceSet",
    "VectorIndex",
    "as_encoder",
    "embedding_text",
    "encode_texts",
    "fingerprint",
    "read_questions",
]
