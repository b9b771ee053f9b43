"""Settings, checked against a pool and a profile, as the graph's runtime context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ..agents import (
    Adaptive,
    AggregatorScores,
    Cost,
    Expertise,
    Policy,
    Pool,
    Profile,
    SkillExtractor,
)
from ..retrieval import InputError, MiniLM, Question, ReferenceSet
from .extractors import check_source, choose_extractor
from .profiling import ProfileFolder
from .state import Resources

__all__ = ["make_resources"]


def make_resources(
    pool: Pool,
    *,
    k: int | None = None,
    profile: Profile | str | Path | None = None,
    policy: Policy = "skill",
    adaptive: Adaptive | float | None = None,
    cost: Cost | None = None,
    merging: Literal["posterior", "vote"] = "posterior",
    aggregator: str | None = None,
    abstain_below: float = 0.0,
    experts: Sequence[str] = (),
    extractor: SkillExtractor | None = None,
    samples: int = 1,
    seed: int = 0,
    **settings: Any,
) -> Resources:
    """Check settings against a pool and make the graph's context of them.

    Args:
        pool: Its catalog says who there is.
        k: Experts per question; 3, or all where there are fewer.
        profile: A profile, or the folder of one.
        policy: See `Policy`; `knn` needs the profile's folder.
        adaptive: Limits of a panel that grows, or its mean number of calls per question.
        cost: See `Cost`.
        merging: How answers become one, see `Resources`.
        aggregator: An alias, or `best` for the profile folder's benchmarked one.
        abstain_below: Confidence below which a question gets no answer.
        experts: Aliases to recruit from; all by default.
        extractor: Tells skills; default: what the pool file and the profile ask for.
        samples: Answers per expert and question.
        seed: Of everything that is drawn.
        settings: Other fields of `Resources`.

    Raises:
        InputError: an unknown expert, numbers out of range, or a profile that does not fit.
    """
    aliases = tuple(experts) or tuple(pool.catalog)
    k = min(3, len(aliases)) if k is None else k
    _check_numbers(k, aliases, samples, abstain_below)
    is_best = aggregator == "best" and "best" not in pool.catalog
    for alias in (*aliases, *([aggregator] if aggregator and not is_best else [])):
        _ = pool.catalog[alias]
    folder = _find_folder(profile)
    references = folder.references() if folder is not None else []
    if isinstance(profile, str | Path):
        profile = Profile.load(profile)
    limits = _limit(adaptive, len(aliases))
    if profile is None and (limits is not None or is_best or policy == "knn"):
        what = "an adaptive panel" if limits else 'aggregator "best"' if is_best else "policy knn"
        raise InputError(f"{what} needs a profile: make one with `expertmix profile`")
    if policy == "knn" and folder is None:
        raise InputError("policy knn needs the folder of a profile, not a profile in memory")
    expertise = None
    if profile is not None:
        profile.check(pool, aliases)
        if extractor is None:
            check_source(profile, pool)
        expertise = Expertise.of_profile(
            profile, aliases, k=k, seed=seed, references=_index(references, policy)
        )
    return Resources(
        pool=pool,
        k=k,
        expertise=expertise,
        policy=policy,
        adaptive=limits,
        cost=cost or Cost(),
        merging=merging,
        experts=aliases,
        extractor=extractor or choose_extractor(pool, references, profile=profile, seed=seed),
        aggregator=None if is_best else aggregator or pool.catalog.file.aggregator,
        aggregators=_load_scores(folder, pool) if is_best else None,
        abstain_below=abstain_below,
        samples=samples,
        seed=seed,
        **settings,
    )


def _check_numbers(k: int, aliases: Sequence[str], samples: int, abstain_below: float) -> None:
    if samples < 1:
        raise InputError(f"samples is {samples}; ask each expert at least once")
    if not 0 <= abstain_below <= 1:
        raise InputError(f"abstain_below is {abstain_below:g}; a confidence lies between 0 and 1")
    if not 1 <= k <= len(aliases):
        raise InputError(
            f"k is {k}, but there are {len(aliases)} experts to recruit from "
            f"({', '.join(aliases)}); choose k between 1 and {len(aliases)}"
        )


def _limit(adaptive: Adaptive | float | None, experts: int) -> Adaptive | None:
    """A mean number of calls as limits."""
    if adaptive is None or isinstance(adaptive, Adaptive):
        return adaptive
    if not 1 <= adaptive <= experts:
        raise InputError(
            f"adaptive is {adaptive:g} calls per question, but there are {experts} experts to recruit "
            f"from; choose a mean between 1 and {experts}"
        )
    return Adaptive.of_mean(adaptive, experts)


def _find_folder(profile: Profile | str | Path | None) -> ProfileFolder | None:
    if isinstance(profile, str | Path) and Path(profile).is_dir():
        return ProfileFolder(profile)
    return None


def _index(references: Sequence[Question], policy: Policy) -> ReferenceSet | None:
    if policy != "knn" or not references:
        return None
    return ReferenceSet.build(references, MiniLM())


def _load_scores(folder: ProfileFolder | None, pool: Pool) -> AggregatorScores:
    if folder is None:
        raise InputError('aggregator "best" needs the folder of a profile, not a profile in memory')
    scores = AggregatorScores.load(folder.path)
    scores.check(pool)
    scores.choose()  # with nobody to choose, better now than after the panel's calls
    return scores
