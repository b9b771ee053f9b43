"""Spellings of a skill: which words differ in writing alone, and which only look alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

__all__ = ["Spelling", "differ_in_meaning", "show_word", "spell"]

MARKS = "#*%@"  # punctuation that tells words apart, as in C#
IRREGULAR = {
    "axes": "axis",
    "bacteria": "bacterium",
    "criteria": "criterion",
    "indices": "index",
    "matrices": "matrix",
    "phenomena": "phenomenon",
    "vertices": "vertex",
}
SHORT_NEGATIONS = ("a", "an", "il", "im", "in", "ir")
NEGATIONS = ("anti", "contra", "counter", "de", "dis", "mis", "non", "un")
NEGATORS = {"never", "no", "non", "not", "without"}
OPPOSITES = (
    ("endo", "exo"),
    ("hyper", "hypo"),
    ("inter", "intra"),
    ("macro", "micro"),
    ("over", "under"),
    ("pre", "post"),
)

Spelling = tuple[str, tuple[str, ...]]
"""What all spellings of a word share: its letters without blanks and plurals, and its numbers."""


def differ_in_meaning(one: str, other: str) -> bool:
    """Whether two similar names differ in a number, a lone letter or a sign, or by a negation."""
    here, there = _split(one), _split(other)
    if _distinguishing(here) != _distinguishing(there):
        return True
    only_here, only_there = set(_fuse(here)), set(_fuse(there))
    only_here, only_there = only_here - only_there, only_there - only_here
    return not NEGATORS.isdisjoint(only_here | only_there) or any(
        _negates(a, b) or _negates(b, a) for a in only_here for b in only_there
    )


def _distinguishing(words: Sequence[str]) -> list[str]:
    """Numbers (Roman ones too), lone letters and words with a sign, such as c++."""
    marking = (w for w in words if len(w) == 1 or not w.isalpha() or re.fullmatch("[ivx]+", w))
    return sorted(marking)


def _fuse(words: Sequence[str]) -> list[str]:
    """Words with their prefix: `non linear` is the one word `nonlinear`."""
    fused: list[str] = []
    prefix = ""
    for at, word in enumerate(words, 1):
        is_prefix = word in NEGATIONS and at < len(words)
        prefix, done = (prefix + word, "") if is_prefix else ("", prefix + word)
        fused += [done] if done else []
    return fused


def _negates(word: str, plain: str) -> bool:
    return any(word == prefix + plain for prefix in (*NEGATIONS, *SHORT_NEGATIONS)) or any(
        word.startswith(a) and plain.startswith(b) and word[len(a) :] == plain[len(b) :]
        for a, b in OPPOSITES
    )


def show_word(word: str) -> str:
    """A word on one line, without what cannot be printed: a model wrote it."""
    return " ".join("".join(c if c.isprintable() else " " for c in word).split())


def spell(word: str) -> Spelling:
    """What all spellings of a word share: its letters without blanks and plurals, and its numbers."""
    words = _split(word)
    return "".join(words), tuple(re.findall(r"\d+", " ".join(words)))


def _split(word: str) -> list[str]:
    """Lower-case words in the singular, without punctuation other than signs."""
    folded = unicodedata.normalize("NFKC", word).casefold().replace("&", " and ")
    plain = re.sub("['’]", "", folded)
    return [_singular(part) for part in "".join(map(_keep, plain)).split()]


def _keep(char: str) -> str:
    kind = unicodedata.category(char)
    return char if kind[0] in "LMN" or kind in ("Sm", "Sc", "So") or char in MARKS else " "


def _singular(word: str) -> str:
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) < 4 or word.endswith(("ss", "us", "is", "ics")):
        return word
    for plural, singular in (("ies", "y"), ("yses", "ysis"), ("eses", "esis"), ("sses", "ss")):
        if word.endswith(plural) and len(word) > len(plural) + 1:
            return word[: -len(plural)] + singular
    if word.endswith(("shes", "ches", "xes")):
        return word[:-2]
    return word.removesuffix("s")
