"""Who does the work: engines, the pool, and the roles."""

from .adaptive import Adaptive, Next, choose_next
from .aggregate import Verdict, read_aggregation, vote
from .aggregator_cases import Case, Cases, build_cases
from .aggregator_scores import AggregatorScore, AggregatorScores
from .aggregators import benchmark_aggregators
from .answers import is_correct, read_answer, same_answer, strip_thinking
from .beliefs import Beliefs
from .calibration import calibrate, expected_calibration_error
from .drafts import build_aggregation, needs_model, trusts_drafts
from .expertise import Expertise
from .judgement import abstain, gather_evidence, judge
from .keyword_skills import KeywordSkills
from .learned_skills import LearnedSkills
from .outcomes import MISSING, UNREADABLE, OutcomeTable, SkillWeights
from .policies import POLICIES, Call, Chosen, Cost, Policy, recruit_many
from .pool import AnswerStore, Catalog, Ledger, LoadPlan, Outlook, Pool, PoolEvent, Timeline
from .posterior import Evidence, chances_of, gains_of
from .profile import Profile
from .profiling import build_profile
from .reason import Answer, AnswerStyle, build_messages, build_requests, derive_seed, read_reply
from .records import ExpertProfile, ExpertRecord, Outcome, Reference, Tally
from .recruit import Recruit, explain_recruit, recruit
from .skills import EmbeddingSkills, SkillExtractor
from .strength import Strengths
from .structured_skills import StructuredSkills
from .task_answers import read_task_answer
from .vocabulary import MappedSkills, SkillMap, Vocabulary, clean_vocabulary

__all__ = [
    "MISSING",
    "POLICIES",
    "UNREADABLE",
    "Adaptive",
    "AggregatorScore",
    "AggregatorScores",
    "Answer",
    "AnswerStore",
    "AnswerStyle",
    "Beliefs",
    "Call",
    "Case",
    "Cases",
    "Catalog",
    "Chosen",
    "Cost",
    "EmbeddingSkills",
    "Evidence",
    "ExpertProfile",
    "ExpertRecord",
    "Expertise",
    "KeywordSkills",
    "LearnedSkills",
    "Ledger",
    "LoadPlan",
    "MappedSkills",
    "Next",
    "Outcome",
    "OutcomeTable",
    "Outlook",
    "Policy",
    "Pool",
    "PoolEvent",
    "Profile",
    "Recruit",
    "Reference",
    "SkillExtractor",
    "SkillMap",
    "SkillWeights",
    "Strengths",
    "StructuredSkills",
    "Tally",
    "Timeline",
    "Verdict",
    "Vocabulary",
    "abstain",
    "benchmark_aggregators",
    "build_aggregation",
    "build_cases",
    "build_messages",
    "build_profile",
    "build_requests",
    "calibrate",
    "chances_of",
    "choose_next",
    "clean_vocabulary",
    "derive_seed",
    "expected_calibration_error",
    "explain_recruit",
    "gains_of",
    "gather_evidence",
    "is_correct",
    "judge",
    "needs_model",
    "read_aggregation",
    "read_answer",
    "read_reply",
    "read_task_answer",
    "recruit",
    "recruit_many",
    "same_answer",
    "strip_thinking",
    "trusts_drafts",
    "vote",
]
