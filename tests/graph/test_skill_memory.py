"""What was told once is not asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from expertmix.graph.skill_memory import SkillMemory
from expertmix.retrieval import Question


class Counting:
    calls_per_question = 2

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    async def extract(self, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
        self.asked.append([question.id for question in questions])
        await asyncio.sleep(0)
        return {q.id: {q.text: 1.0} for q in questions if q.text != "?"}


async def test_a_question_is_asked_once_and_another_under_its_id_anew() -> None:
    counting = Counting()
    memory = SkillMemory(counting)
    first, second, other = (
        Question(id=i, text=t) for i, t in (("a", "sums"), ("b", "?"), ("a", "law"))
    )
    both, again = await asyncio.gather(memory.extract([first, second]), memory.extract([second]))
    assert both == {"a": {"sums": 1.0}, "b": {}}
    assert again == {"b": {}}
    assert await memory.extract([other]) == {"a": {"law": 1.0}}
    assert counting.asked == [["a", "b"], ["a"]]
    assert memory.calls_per_question == 2


async def test_what_is_given_can_be_changed_without_harm() -> None:
    memory = SkillMemory(Counting())
    question = Question(id="a", text="sums")
    (await memory.extract([question]))["a"].clear()
    assert await memory.extract([question]) == {"a": {"sums": 1.0}}
