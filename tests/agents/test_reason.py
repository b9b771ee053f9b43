"""How experts are asked, and how their replies are read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from expertmix.agents import build_messages, build_requests, derive_seed, read_reply
from expertmix.agents.engines import Failure, OptionScore, Reply, Sampling, Usage
from expertmix.agents.prompt import hash_prompts
from expertmix.agents.reason import reason_prompt_hash
from expertmix.retrieval import TASKS, InputError, Question

CHOICE = Question(id="c", text="Cost of $question?", options=("a lot", "nil"), kind="choice")
NUMBER = Question(id="n", text="2 + 2?", kind="number")


def test_the_question_is_asked_once_as_it_stands() -> None:
    content = build_messages(CHOICE)[-1]["content"]
    assert content.count("Cost of $question?") == 1
    assert content.count("Question:") == 1, "the reference code asks it twice"
    assert "(A) a lot\n(B) nil" in content
    assert "Answer: (X)" in content


def test_seeds_depend_on_what_is_asked_and_on_nothing_else() -> None:
    both = build_requests([CHOICE, NUMBER], sampling=Sampling(), samples=2, seed=5)
    turned = build_requests([NUMBER, CHOICE], sampling=Sampling(), samples=2, seed=5)
    assert {r.id: r.sampling.seed for r in both} == {r.id: r.sampling.seed for r in turned}
    assert len({r.sampling.seed for r in both}) == 4
    program = "from expertmix.agents import derive_seed; print(derive_seed(5, 'c', 1))"
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(told.stdout) == derive_seed(5, "c", 1)


def test_scored_questions_are_continued_and_open_ones_are_not() -> None:
    choice, number = build_requests([CHOICE, NUMBER], sampling=Sampling(), style="score")
    assert choice.options == (" a lot", " nil")
    assert choice.messages[-1] == {"role": "assistant", "content": "Answer:"}
    assert "nil" not in choice.messages[0]["content"], (
        "an option that is shown is scored as an echo"
    )
    assert number.options == ()
    assert number.messages[-1]["role"] == "user"


def test_the_likeliest_option_is_the_answer() -> None:
    scores = (OptionScore(logprob=-4.0, tokens=2), OptionScore(logprob=-3.6, tokens=1))
    answer = read_reply(Reply(request_id="c#0", scores=scores), CHOICE, "e")
    assert answer.answer == "B"
    assert "A -4.00, B -3.60" in answer.text


def test_a_reply_becomes_an_answer_with_its_sample_and_costs() -> None:
    usage = Usage(prompt_tokens=9, completion_tokens=4)
    reply = Reply(request_id="n#3", text="It is 4.\nAnswer: 4", usage=usage)
    answer = read_reply(reply, NUMBER, "e")
    assert (answer.answer, answer.sample, answer.usage) == ("4", 3, usage)


def test_a_cut_chain_of_thought_is_no_answer() -> None:
    assert (
        read_reply(Reply(request_id="n#0", text="<think>4? Answer: 5"), NUMBER, "e").answer is None
    )


def test_a_failure_is_an_answer_marked_failed() -> None:
    reply = Reply(
        request_id="n#0", finish="error", failure=Failure(kind="context", message="too long")
    )
    answer = read_reply(reply, NUMBER, "e")
    assert (answer.answer, answer.error) == (None, "too long")


OFFICIAL = {  # MMLU's line is about the subject, the others have none
    "mmlu": "The following are multiple choice questions (with answers) about world money.\n\n"
    "Cost of $question?\nA. a lot\nB. nil\nAnswer:",
    "mmlu_pro": "The following are multiple choice questions (with answers) about world money. Think step by "
    'step and then finish your answer with "the answer is (X)" where X is the correct letter choice.\n'
    "Question:\nCost of $question?\nOptions:\nA. a lot\nB. nil\nAnswer: Let's think step by step.",
    "gpqa": "Answer the following multiple choice question. The last line of your response should be of the "
    "following format: 'Answer: $LETTER' (without quotes) where LETTER is one of AB. Think step by step "
    "before answering.\n\nCost of $question?\n\nA) a lot\nB) nil",
    "aime": "Please reason step by step, and put your final answer within \\boxed{}.\n"
    "The answer is an integer between 0 and 999 inclusive.\n\n2 + 2?",
    "medmcqa": "Question: Cost of $question?\nChoices:\nA. a lot\nB. nil\nAnswer:",
    "gsm8k": "Solve the problem step by step and finish with a line that says: #### N\n"
    "where N is the answer, the number alone.\n\nQuestion: 2 + 2?\nAnswer:",
    "arc": "Question: Cost of $question?\nA. a lot\nB. nil\nAnswer:",
    "openbookqa": "Question: Cost of $question?\nA. a lot\nB. nil\nAnswer:",
}


@pytest.mark.parametrize("task", TASKS)
def test_a_benchmark_question_is_asked_in_its_own_words(task: str) -> None:
    plain = NUMBER if TASKS[task].kind == "number" else CHOICE
    asked = replace(plain, task=task, skills=("world_money",))
    assert build_messages(asked) == ({"role": "user", "content": OFFICIAL[task]},)
    for style in ("score", "letter"):
        if plain.options:
            assert build_messages(asked, style=style) == build_messages(plain, style=style)
        else:
            assert build_messages(asked, style=style) == build_messages(asked)


def test_a_question_without_a_subject_is_asked_about_none() -> None:
    content = build_messages(replace(CHOICE, task="mmlu"))[0]["content"]
    assert content.startswith("The following are multiple choice questions (with answers).\n")
    with pytest.raises(InputError, match="there is no task 'sea'"):
        build_messages(replace(CHOICE, task="sea"))


def test_the_hash_of_the_wording_covers_every_task(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: set[str] = set()

    def note(*names: str) -> str:
        hashed.update(names)
        return hash_prompts(*names)

    monkeypatch.setattr("expertmix.agents.reason.hash_prompts", note)
    assert len(reason_prompt_hash()) == 64
    assert {f"task-{name}" for name in TASKS} < hashed


def test_what_an_engine_tells_of_a_reply_stays_with_the_answer() -> None:
    question = Question(id="q", text="?", gold="x")
    told = {"remix": {"verdict": "kept"}}
    answer = read_reply(Reply(request_id="q#0", text="Answer: x", details=told), question, "a")
    assert answer.to_json()["details"] == told
    assert "details" not in read_reply(Reply(request_id="q#0", text="x"), question, "a").to_json()
