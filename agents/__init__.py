"""Who does the work: engines, the pool, and the roles."""

from .aggregate import Verdict, build_aggregation, read_aggregation, vote
from .answers import is_correct, read_answer, same_answer, strip_thinking
from .pool import AnswerStore, Catalog, Ledger, LoadPlan, Pool, PoolEvent
from .profile import ExpertProfile, Profile, Tally, build_profile, tally_answers
from .reason import Answer, AnswerStyle, build_messages, build_requests, derive_seed, read_reply
from .recruit import Policy, Recruit, recruit
from .skills import EmbeddingSkills, KeywordSkills, SkillExtractor

__all__ = [
    "Answer",
    "AnswerStore",
    "AnswerStyle",
    "Catalog",
    "EmbeddingSkills",
    "ExpertProfile",
    "KeywordSkills",
    "Ledger",
    "LoadPlan",
    "Policy",
    "Pool",
    "PoolEvent",
    "Profile",
    "Recruit",
    "SkillExtractor",
    "Tally",
    "Verdict",
    "build_aggregation",
    "build_messages",
    "build_profile",
    "build_requests",
    "derive_seed",
    "is_correct",
    "read_aggregation",
    "read_answer",
    "read_reply",
    "recruit",
    "same_answer",
    "strip_thinking",
    "tally_answers",
    "vote",
]
