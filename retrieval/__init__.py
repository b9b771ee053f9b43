"""What has been seen: questions, embeddings and the references that resemble them."""

from .embed import Encoder, MiniLM, as_encoder, encode_texts
from .errors import InputError
from .given import GivenVectors
from .index import Hit, VectorIndex
from .neighbours import Neighbour, Neighbours
from .questions import AnswerKind, Question, fingerprint, read_questions
from .references import ReferenceSet, embedding_text
from .retriever import ReferenceRetriever
from .task_questions import is_confidential, read_task
from .tasks import TASKS, Task, find_task

__all__ = [
    "TASKS",
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
    "Task",
    "VectorIndex",
    "as_encoder",
    "embedding_text",
    "encode_texts",
    "find_task",
    "fingerprint",
    "is_confidential",
    "read_questions",
    "read_task",
]
