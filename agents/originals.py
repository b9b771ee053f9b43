"""The published recruiting policies, exactly, with their mistakes: what ours are compared with.

Two originals that disagree: the paper's formulas (by notes on its fourth version) and the published
code (commit d6c2e0d), written here from their description and pinned by recorded values
(symbolic-moe.md §1.4, §1.5, §5.3). Where one stops or is undefined, a fallback is stated.
Q questions, E experts, S skills, k draws per question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..retrieval import InputError
from .outcomes import OutcomeTable

__all__ = [
    "count_tags",
    "draw_uniforms",
    "draw_with_replacement",
    "local_scores",
    "net_scores",
    "normalise",
    "profile_rows",
    "rank_by_skill",
    "replacement_weights",
    "trim_rare",
    "weigh_paper",
    "weigh_reference",
]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Numbers = npt.ArrayLike


def profile_rows(tags: Sequence[Sequence[str]], right: Sequence[bool]) -> dict[str, int]:
    """One expert's right minus wrong answers per tag (published code, §1.4).

    A tag that stands twice on a row counts twice; tags with 0 stay. The net hides how much was seen:
    1 of 2 and 50 of 100 are the same.

    Raises:
        InputError: `tags` and `right` differ in length.
    """
    if len(tags) != len(right):
        raise InputError(f"{len(tags)} rows have tags, but {len(right)} have answers")
    profile: dict[str, int] = {}
    for names, is_right in zip(tags, right, strict=True):
        for name in names:
            profile[name] = profile.get(name, 0) + (1 if is_right else -1)
    return profile


def net_scores(table: OutcomeTable, skills: Sequence[str]) -> Floats:
    """Right minus wrong answers of every expert per skill (§1.4), from a table of answers.

    A skill counts once per row whatever its weight, an unreadable answer is wrong, a missing one is
    skipped; a skill without rows scores 0. The sum of an expert's row is its global strength in both
    originals: a question with four skills weighs 4. Gives scores_ES, experts as in the table.
    """
    sign_NE = np.where(table.right_NE, 1.0, -1.0) * table.asked_NE
    counts_NS = count_tags([tuple(row) for row in table.skills] or [()] * len(table), skills)
    return sign_NE.T @ counts_NS


def count_tags(tags: Sequence[Sequence[str]], skills: Sequence[str]) -> Floats:
    """How often each skill stands among the tags of each question: counts_QS.

    In the published code two keywords that map to one skill count twice. Other tags are left out.

    Raises:
        InputError: a skill is named twice.
    """
    column = {name: at for at, name in enumerate(skills)}
    if len(column) != len(skills):
        raise InputError(f"{len(skills)} skills have only {len(column)} names; name each once")
    places = [
        row * len(column) + column[name]
        for row, names in enumerate(tags)
        for name in names
        if name in column
    ]
    cells = np.bincount(np.asarray(places, dtype=np.intp), minlength=len(tags) * len(column))
    return cells.astype(np.float64).reshape(len(tags), len(column))


def local_scores(scores_ES: Numbers, counts_QS: Numbers) -> Floats:
    """An expert's `net_scores` summed over a question's `count_tags` (S in §1.5); 0 without any.

    Raises:
        InputError: the two differ in the number of skills, or hold NaN.
    """
    scores, counts = _finite(scores_ES, 2), _finite(counts_QS, 2)
    if scores.shape[1] != counts.shape[1]:
        raise InputError(f"scores have {scores.shape[1]} skills, but questions {counts.shape[1]}")
    return counts @ scores.T


def normalise(values_E: Numbers, temperature: float = 0.5) -> Floats:
    """γ of the published code (§1.5): global strengths to the power 1 / temperature, as shares of 1.

    What it calls a temperature of 0.5 is a square. If any value is negative, all are raised to a least
    value of 1: one very bad expert makes the others alike.

    Returns:
        γ_E. All equal where every value is 0: there the published code divides by zero.

    Raises:
        InputError: no values, NaN, or a temperature that is not above 0.
    """
    given_E = _finite(values_E, 1)
    if not len(given_E) or not temperature > 0:
        raise InputError(
            f"got {len(given_E)} values at temperature {temperature}; both must be > 0"
        )
    if given_E.min() < 0:
        given_E = given_E - given_E.min() + 1
    largest = given_E.max() or 1.0
    power_E = (given_E / largest) ** (1 / temperature)  # scaled, so that no power can overflow
    return power_E / power_E.sum() if power_E.any() else np.full(len(power_E), 1 / len(power_E))


def weigh_reference(
    local_QE: Numbers, strength_E: Numbers, known_Q: npt.NDArray[np.bool_] | None = None
) -> Floats:
    """Chances to be drawn in the published code (§1.5): local score times γ, without a softmax.

    Experts with a positive score share the chances; if none has one, all do, after a shift to a least
    score of 1. Questions without skills go to anybody, weak experts included.

    Args:
        local_QE: From `local_scores`.
        strength_E: γ from `normalise`.
        known_Q: Which questions have skills, `counts_QS.sum(axis=1) > 0`; all if left out.

    Returns:
        p_QE, rows sum to 1. Equal among the candidates where all of them have γ = 0: there the
        published code stops with an error.

    Raises:
        InputError: shapes that do not fit, NaN, or a negative γ.
    """
    local, strength = _pair(local_QE, strength_E)
    if strength.min() < 0:
        raise InputError(f"γ must not be negative, got {strength.min():g}; make it by `normalise`")
    known = np.ones(len(local), dtype=np.bool_) if known_Q is None else known_Q
    if known.shape != (len(local),):
        raise InputError(f"known_Q has the shape {known.shape}, expected ({len(local)},)")
    has_positive_Q1 = (local > 0).any(axis=1, keepdims=True)
    may_QE = (local > 0) | ~has_positive_Q1
    shifted_QE = local - local.min(axis=1, keepdims=True) + 1
    weights_QE = np.where(has_positive_Q1, local, shifted_QE) * strength * may_QE
    weights_QE = np.where(weights_QE.any(axis=1, keepdims=True), weights_QE, may_QE)
    weights_QE = np.where(known[:, None], weights_QE, 1.0)
    return weights_QE / weights_QE.sum(axis=1, keepdims=True)


def weigh_paper(local_QE: Numbers, totals_E: Numbers, temperature: float = 0.5) -> Floats:
    """Chances to be drawn in the paper (§1.5): the softmax of γ times local score.

    γ is an expert's share of the pool's total. An expert that is bad both overall and here is rewarded,
    for the product of two negative numbers is positive; experts without a positive score keep a chance;
    the more rows a profile has, the sharper the chances; near a total of 0, γ is boundless.

    Args:
        local_QE: From `local_scores`.
        totals_E: Sums of the rows of `net_scores`.
        temperature: Of the softmax.

    Returns:
        p_QE, rows sum to 1; equal chances without skills. γ is undefined where the pool's total is 0
        and turns round where it is negative; there every expert has γ = 1 / E.

    Raises:
        InputError: shapes that do not fit, NaN, or a temperature that is not above 0.
    """
    local, totals = _pair(local_QE, totals_E)
    if not temperature > 0:
        raise InputError(f"the temperature is {temperature}; choose one above 0")
    total = totals.sum()
    share_E = totals / total if total > 0 else np.full(len(totals), 1 / len(totals))
    logits_QE = local * share_E / temperature
    power_QE = np.exp(logits_QE - logits_QE.max(axis=1, keepdims=True))
    return power_QE / power_QE.sum(axis=1, keepdims=True)


def draw_uniforms(ids: Sequence[str], k: int, seed: int) -> Floats:
    """Draw k numbers in [0, 1) for each question from its id and the seed alone: uniforms_Qk.

    In the published code they come from one global generator, so that a question's experts depend on
    the questions before it. Here neither that order nor k changes a question's first numbers.

    Raises:
        InputError: k is below 1.
    """
    if k < 1:
        raise InputError(f"k is {k}; draw at least one expert")
    key = hashlib.blake2b(str(seed).encode(), digest_size=32).digest()
    names = [name.encode("utf-8", "surrogatepass") for name in ids]
    hashed, blocks = hashlib.blake2b, list[Floats]()
    for at in range(0, k, 8):  # a digest has 64 bytes, a number 8
        salt, width = at.to_bytes(16, "big"), min(8, k - at)
        drawn = b"".join([hashed(name, key=key, salt=salt).digest()[: 8 * width] for name in names])
        bits_Qk = np.frombuffer(drawn, dtype="<u8").reshape(len(names), width)
        blocks.append((bits_Qk >> np.uint64(11)).astype(np.float64) * 2.0**-53)
    return np.concatenate(blocks, axis=1)


def draw_with_replacement(p_QE: Numbers, uniforms_Qk: Floats) -> Indices:
    """Draw the columns that Python's `random.choices` draws from these weights by these numbers.

    One expert may fill all k places and then answers k times. The outcome depends on the order of the
    columns (in the published code, of a directory listing): the experts of an `OutcomeTable` are sorted.

    Args:
        p_QE: Chances, or any weights.
        uniforms_Qk: Numbers in [0, 1).

    Raises:
        InputError: different numbers of questions, a negative weight, NaN, or a row without any.
    """
    weights_QE = _finite(p_QE, 2)
    if len(weights_QE) != len(uniforms_Qk):
        raise InputError(f"{len(weights_QE)} rows of chances, {len(uniforms_Qk)} of random numbers")
    if (weights_QE < 0).any() or not weights_QE.any(axis=1).all():
        raise InputError("every question needs chances of at least 0, and one above 0")
    sums_QE = np.cumsum(weights_QE, axis=1)
    points_Qk = uniforms_Qk * sums_QE[:, -1:]
    experts_Qk = np.zeros(points_Qk.shape, dtype=np.intp)
    for sums_Q in sums_QE.T[:-1]:  # by columns: no array of Q × k × E is made
        experts_Qk += sums_Q[:, None] <= points_Qk
    return experts_Qk


def replacement_weights(counts_E: Numbers, least: float = 0.05) -> Floats:
    """Shares of all selections among the experts that have at least `least` of them, else 0 (§1.5).

    Raises:
        InputError: no expert is selected often enough to stay, or a count is negative.
    """
    given_E = _finite(counts_E, 1)
    if not given_E.any() or (given_E < 0).any():
        raise InputError("counts of selections must be at least 0, and one above 0")
    kept_E = np.where(given_E / given_E.sum() >= least, given_E, 0.0)
    if not kept_E.any():
        raise InputError(f"no expert has {least:.0%} of the selections; choose a smaller share")
    return kept_E / kept_E.sum()


def trim_rare(experts_Qk: Indices, uniforms_Qk: Floats, *, least: float = 0.05) -> Indices:
    """Draw again for the slots of experts that are rare in the batch (§1.5).

    The published code never calls it. A question's experts then depend on those asked with it.

    Args:
        experts_Qk: From `draw_with_replacement`.
        uniforms_Qk: Fresh random numbers, used where a slot is filled again.
        least: See `replacement_weights`.

    Raises:
        InputError: different shapes, or no expert is selected often enough to stay.
    """
    if experts_Qk.shape != uniforms_Qk.shape:
        raise InputError(f"slots {experts_Qk.shape} and random numbers {uniforms_Qk.shape} differ")
    if not experts_Qk.size:
        return experts_Qk
    chances_E = replacement_weights(np.bincount(experts_Qk.ravel()), least)
    drawn = draw_with_replacement(chances_E[None], uniforms_Qk.reshape(1, -1))
    return np.where(chances_E[experts_Qk] > 0, experts_Qk, drawn.reshape(experts_Qk.shape))


def rank_by_skill(
    profiles: Mapping[str, Mapping[str, float]], skills: Sequence[str]
) -> dict[str, list[tuple[str, float]]]:
    """Experts with a score for each skill, best first, ties as in `profiles` (published code, §5.3)."""
    return {
        skill: sorted(
            [(name, scores[skill]) for name, scores in profiles.items() if skill in scores],
            key=lambda pair: -pair[1],
        )
        for skill in skills
    }


def _finite(values: Numbers, axes: int) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != axes or not np.isfinite(array).all():
        raise InputError(f"expected finite numbers on {axes} axes, got {array.ndim} axes or NaN")
    return array


def _pair(local_QE: Numbers, global_E: Numbers) -> tuple[Floats, Floats]:
    local, overall = _finite(local_QE, 2), _finite(global_E, 1)
    if not 0 < local.shape[1] == len(overall):
        raise InputError(f"local scores have {local.shape[1]} experts, global ones {len(overall)}")
    return local, overall
