"""What is known about experts: the profile's table, beliefs about it, and neighbours for `knn`."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings

from expertmix.agents import Beliefs, Expertise, OutcomeTable, Pool, build_profile
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.retrieval import InputError, Question, ReferenceSet


class HashedWords(Embeddings):
    """Stands in for MiniLM: each word adds one to a place that its hash tells."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        vector = [0.0] * 512
        for word in re.findall(r"\w+", text.lower()):
            vector[zlib.crc32(word.encode()) % 512] += 1
        return vector


def write_references(each: int = 25) -> list[Question]:
    """Law and cells; the gold is A."""
    texts = [f"contract court judge statute case {at}" for at in range(each)]
    texts += [f"cell gene enzyme protein membrane {at}" for at in range(each)]
    return [
        Question(id=f"r{at:02}", text=text, options=("x", "y", "z"), gold="A", kind="choice")
        for at, text in enumerate(texts)
    ]


def know(references: Sequence[Question], *, indexed: bool = True) -> Expertise:
    """`counsel` is right on law and wrong on cells, `doctor` the other way round."""
    is_law_N = np.array(["court" in question.text for question in references])
    table = OutcomeTable(
        experts=("counsel", "doctor"),
        questions=tuple(question.id for question in references),
        labels_NE=np.stack([np.where(is_law_N, 0, 1), np.where(is_law_N, 1, 0)], axis=1).astype(
            np.int16
        ),
        gold_N=np.zeros(len(references), np.int16),
        options_N=np.full(len(references), 3, np.int16),
    )
    found = ReferenceSet.build(references, HashedWords()) if indexed else None
    return Expertise(table=table, beliefs=Beliefs.fit(table), references=found)


LAW = Question(id="q", text="contract court judge statute appeal")
CELLS = Question(id="s", text="cell gene enzyme protein virus")


def test_knn_asks_who_was_right_on_what_resembles_the_question() -> None:
    known = know(write_references())
    chosen = known.recruit([CELLS, LAW], {}, k=1, policy="knn", seed=0)
    assert {qid: recruits[0].expert for qid, recruits in chosen.items()} == {
        "q": "counsel",
        "s": "doctor",
    }


def test_knn_never_looks_at_the_question_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    references = write_references()
    seen: dict[str, Sequence[int]] = {}

    def spy(_skills: object, _experts: object, *, near: Mapping[str, Any], **_: object) -> None:
        seen.update(near)

    monkeypatch.setattr("expertmix.agents.expertise.recruit", spy)
    twin = Question(id="new", text=references[3].text.upper() + "!")
    know(references).recruit([twin, LAW], {}, k=1, policy="knn", seed=0)
    assert 3 not in seen["new"], "the same text under another name"
    assert len(seen["new"]) == len(seen["q"]) == 20
    assert all(row < 25 for row in seen["q"])


def test_knn_leaves_out_references_that_nobody_was_asked() -> None:
    references = write_references()
    known = know(references)
    wider = [*references, Question(id="later", text="contract court judge statute", gold="x")]
    grown = Expertise(
        table=known.table,
        beliefs=known.beliefs,
        references=ReferenceSet.build(wider, HashedWords()),
    )
    chosen = grown.recruit([LAW], {}, k=1, policy="knn", seed=0)
    assert chosen["q"][0].expert == "counsel"


def test_knn_without_references_says_what_it_needs() -> None:
    with pytest.raises(InputError, match="give the profile's folder"):
        know(write_references(), indexed=False).recruit([LAW], {}, k=1, policy="knn", seed=0)


def test_a_question_without_skills_counts_on_overall_strength() -> None:
    known = know(write_references())
    chosen = known.recruit([LAW], {}, k=2, policy="skill", seed=0)
    assert [recruit.weight for recruit in chosen["q"]] == pytest.approx([0.5, 0.5], abs=0.1)


async def test_a_profile_gives_the_table_of_who_may_be_recruited() -> None:
    references = write_references(3)
    engines = {
        name: ScriptedEngine(name, {"*": f"Answer: ({letter})"})
        for name, letter in (("good", "A"), ("bad", "B"), ("other", "C"))
    }
    async with Pool.from_engines(engines) as pool:
        profile = await build_profile(pool, references, {})
    known = Expertise.of_profile(profile, ["good", "bad", "good"], k=1)
    assert known.table.experts == known.beliefs.experts == ("bad", "good")
    assert known.recruit([LAW], {}, k=1, policy="skill", seed=0)["q"][0].expert == "good"
    with pytest.raises(InputError, match="nobody"):
        Expertise.of_profile(profile, ["nobody"])
