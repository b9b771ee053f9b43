"""What tells the skills: of references when a profile is made, and of the questions that it is used for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..agents import (
    EmbeddingSkills,
    KeywordSkills,
    LearnedSkills,
    MappedSkills,
    Pool,
    Profile,
    SkillExtractor,
    SkillMap,
    SkillWeights,
    StructuredSkills,
    Vocabulary,
    clean_vocabulary,
)
from ..agents.keyword_skills import Ask
from ..agents.pool.specs import TransformersExpert
from ..retrieval import InputError, MiniLM, Question

__all__ = [
    "ReferenceSkills",
    "check_source",
    "choose_extractor",
    "share_labels",
    "tell_reference_skills",
]


@dataclass(frozen=True, kw_only=True)
class ReferenceSkills:
    """The skills of a profile's references."""

    skills: Mapping[str, SkillWeights]
    """By question id."""
    told_by: str
    """What told them: profiles whose skills come from elsewhere do not merge."""
    vocabulary: Vocabulary | None = None
    """How open keywords were cleaned up; None for closed vocabularies."""


async def tell_reference_skills(pool: Pool, references: Sequence[Question]) -> ReferenceSkills:
    """The skills of references, as `choose_extractor` will tell those of questions.

    Labels that a person gave the references win where the pool file asks for nothing else. Open keywords
    are cleaned up: spellings and near duplicates of one skill become one.

    Raises:
        InputError: as the extractor.
    """
    file = pool.catalog.file
    asks = file.skills or file.skills_by is not None or file.keywords_by is not None
    if not asks and any(question.skills for question in references):
        labels = {question.id: share_labels(question.skills) for question in references}
        return ReferenceSkills(skills=labels, told_by="the references' own labels")
    extractor = choose_extractor(pool, references)
    if extractor is None:
        return ReferenceSkills(skills={}, told_by="nothing")
    found: Mapping[str, SkillWeights] = await extractor.extract(references)
    told_by = f"{type(extractor).__name__} {_hash_source(pool)}"
    named = [word for weights in found.values() for word in weights]
    if not _is_open(pool) or not named:
        return ReferenceSkills(skills=found, told_by=told_by)
    vocabulary = clean_vocabulary(named, _find_encoder())
    renamed = {qid: _rename(weights, vocabulary) for qid, weights in found.items()}
    return ReferenceSkills(skills=renamed, told_by=told_by, vocabulary=vocabulary)


def choose_extractor(
    pool: Pool,
    references: Sequence[Question] = (),
    *,
    profile: Profile | None = None,
    seed: int = 0,
) -> SkillExtractor | None:
    """The skill extractor that a pool file asks for.

    `skills_by` names an expert that is asked once per question, `skills` alone is a closed vocabulary
    matched by embedding, `keywords_by` names an expert that is asked several times as in the paper. Open
    keywords are mapped to the profile's skills. A pool file that asks for nothing gets the references'
    own labels as a vocabulary, or one that is learnt from their texts; without references and an
    encoder there is no extractor, and every question counts on overall strength.

    Args:
        pool: Its file says what to do.
        references: Sharpen a closed vocabulary; what a vocabulary is learnt from.
        profile: Whose skills open keywords are mapped to; None while it is being made.
        seed: Of an annotating model's samples.
    """
    file = pool.catalog.file
    if file.skills_by is not None:
        # transformers knows no schemas and would refuse every request: there the prompt alone asks for JSON.
        knows_schemas = not isinstance(pool.catalog[file.skills_by], TransformersExpert)
        structured = StructuredSkills(
            _bind(pool, file.skills_by),
            vocabulary=file.skills or None,
            seed=seed,
            constrain=knows_schemas,
        )
        return _close(structured, pool, profile)
    if file.skills:
        return _match(file.skills, references)
    if file.keywords_by is not None:
        return _close(KeywordSkills(_bind(pool, file.keywords_by), seed=seed), pool, profile)
    encoder = _find_encoder() if references else None  # to find it takes a hash of its weights
    if encoder is None:
        return None
    labels = sorted({skill for question in references for skill in question.skills})
    if labels:
        return _match({label: label for label in labels}, references)
    # One vocabulary for a set of references, whatever the seed of a run: the profile counts by it.
    return LearnedSkills.learn(encoder, references, seed=0)


def check_source(profile: Profile, pool: Pool) -> None:
    """Refuse a profile whose skills were told by something else than the pool file asks for now.

    Raises:
        InputError: `skills`, `skills_by` or `keywords_by` changed since.
    """
    recorded = profile.extractor.rpartition(" ")[2]
    if re.fullmatch("[0-9a-f]{12}", recorded) and recorded != _hash_source(pool):
        raise InputError(
            "the pool file's skills, skills_by or keywords_by changed since the profile was made; run "
            "`expertmix profile` again: no expert is asked twice"
        )


def _hash_source(pool: Pool) -> str:
    words = pool.catalog.file.model_dump_json(include={"skills", "keywords_by", "skills_by"})
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def _match(skills: Mapping[str, str], references: Sequence[Question]) -> EmbeddingSkills:
    extractor = EmbeddingSkills(MiniLM(), skills)
    labelled = [q for q in references if any(skill in skills for skill in q.skills)]
    if labelled:
        extractor.fit(labelled)
    return extractor


def _close(extractor: SkillExtractor, pool: Pool, profile: Profile | None) -> SkillExtractor:
    """Open keywords as the profile's skills, once there is a profile."""
    if profile is None or not _is_open(pool):
        return extractor
    names = sorted({name for row in profile.questions.values() for name in row.skills})
    return MappedSkills(extractor, SkillMap(names, MiniLM())) if names else extractor


def _is_open(pool: Pool) -> bool:
    file = pool.catalog.file
    return not file.skills and (file.skills_by is not None or file.keywords_by is not None)


def _bind(pool: Pool, alias: str) -> Ask:
    return lambda asked: pool.generate(alias, asked, stage="skills")


def _find_encoder() -> MiniLM | None:
    """The encoder, if it can be used here."""
    encoder = MiniLM()
    try:
        _ = encoder.revision
    except InputError:
        return None
    return encoder


def _rename(weights: SkillWeights, vocabulary: Vocabulary) -> dict[str, float]:
    shares: dict[str, float] = {}
    for word, share in weights.items():
        name = vocabulary.name_of(word)
        if name is not None:
            shares[name] = shares.get(name, 0.0) + share
    return {name: shares[name] for name in sorted(shares, key=lambda name: -shares[name])}


def share_labels(skills: Sequence[str]) -> SkillWeights:
    """Equal shares; a label named twice is still one."""
    names = tuple(dict.fromkeys(skills))
    return dict.fromkeys(names, 1 / max(1, len(names)))
