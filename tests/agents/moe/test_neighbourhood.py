from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
from moe_families import make_model
from moe_wording import make_letters, make_questions

from expertmix.agents.moe.architecture import MoeModel, find_moe
from expertmix.agents.moe.bank import StateBank, build_bank
from expertmix.agents.moe.neighbourhood import Neighbourhood, pose, tabulate_neighbours
from expertmix.agents.moe.suffix import SuffixEngine
from expertmix.retrieval import Neighbour, Neighbours

LETTERS = make_letters()
QUESTIONS = make_questions(9)


@pytest.fixture(scope="module")
def moe() -> MoeModel:
    return find_moe(make_model("qwen2_moe"))


@pytest.fixture(scope="module")
def bank(moe: MoeModel) -> StateBank:
    return build_bank(moe, LETTERS, QUESTIONS, first=2)


def found(*rows: int, dropped: dict[str, int] | None = None) -> Neighbours:
    return Neighbours(
        found=tuple(
            Neighbour(question=QUESTIONS[row], similarity=0.9 - 0.1 * place, row=row)
            for place, row in enumerate(rows)
        ),
        dropped=dropped or {},
    )


def test_neighbours_become_tensors_with_gaps() -> None:
    table = tabulate_neighbours(
        [found(3, 1, 2), found(5, dropped={"same id": 1}), found(dropped={"same id": 2})], 2
    )
    assert table.rows_QN.tolist() == [[3, 1], [5, 0], [0, 0]]
    assert table.present_QN.tolist() == [[True, True], [True, False], [False, False]]
    assert table.similarity_QN[0].tolist() == [0.9, 0.8]
    assert table.dropped == {"same id": 3}


def test_rows_of_the_references_lead_to_rows_of_the_bank() -> None:
    table = tabulate_neighbours([found(0, 2)], 2, rows=[7, 8, 4])
    assert table.rows_QN.tolist() == [[7, 4]]


def test_some_questions_and_some_places_are_taken() -> None:
    table = tabulate_neighbours([found(3, 1, 2), found(5)], 3)
    assert table.take(torch.tensor([1])).rows_QN.tolist() == [[5, 0, 0]]
    assert table.cut(slice(1, None)).rows_QN.tolist() == [[1, 2], [0, 0]]
    assert table.cut(slice(1, None)).present_QN.tolist() == [[True, True], [False, False]]
    assert table.take(torch.tensor([1, 0])).cut(slice(0, 1)).rows_QN.tolist() == [[5], [3]]


def tabulate(rows: list[list[int]]) -> Neighbourhood:
    return tabulate_neighbours([found(*each) for each in rows], max(map(len, rows)))


def test_a_problem_holds_the_neighbours_and_their_weights(moe: MoeModel, bank: StateBank) -> None:
    engine = SuffixEngine(moe, (2, 3), LETTERS.tokens_O)
    start_QCE = bank.states([6, 8]).pathway_at((2, 3))
    table = tabulate([[3, 1, 4], [5, 2]])
    problem = pose(engine, bank, table, start_QCE, core_experts=4)
    assert problem.simplex
    assert problem.core_experts == 4
    torch.testing.assert_close(problem.kernel_QN.sum(-1), torch.ones(2).double())
    assert problem.kernel_QN[1, 2] == 0
    assert problem.neighbours_Q().tolist() == [3, 2]
    assert problem.neighbour_routing_QNCE is not None
    expected_NCE = bank.states([3, 1, 4]).pathway_at((2, 3))
    assert torch.equal(problem.neighbour_routing_QNCE[0], expected_NCE)
    assert pose(engine, bank, table, start_QCE, core_experts=None).core_experts is None
    assert pose(engine, bank, table, start_QCE, core_experts=8).core_experts is None
    assert pose(engine, bank, table, start_QCE, core_experts=20).core_experts is None


def test_a_neighbour_that_does_not_exist_is_a_copy_of_the_nearest(
    moe: MoeModel, bank: StateBank
) -> None:
    engine = SuffixEngine(moe, (2, 3), LETTERS.tokens_O)
    start_QCE = bank.states([6, 8]).pathway_at((2, 3))
    problem = pose(engine, bank, tabulate([[3, 1, 4], [5]]), start_QCE, core_experts=None)
    assert problem.neighbour_routing_QNCE is not None
    torch.testing.assert_close(
        problem.neighbour_routing_QNCE[1], bank.states([5, 5, 5]).pathway_at((2, 3))
    )
    losses_QN = problem.objective(start_QCE)
    torch.testing.assert_close(losses_QN[1], losses_QN[1, :1].expand(3))
    assert problem.kernel_QN[1].tolist() == [1, 0, 0]
    given = torch.tensor([[0, 1, 0], [1, 0, 0]])
    control = pose(
        engine, bank, tabulate([[3, 1, 4], [5]]), start_QCE, core_experts=None, gold_QN=given
    )
    control_QN = control.objective(start_QCE)
    torch.testing.assert_close(control_QN[1], control_QN[1, :1].expand(3))


def test_under_its_own_routing_a_neighbour_has_its_own_loss(moe: MoeModel, bank: StateBank) -> None:
    engine = SuffixEngine(moe, (2, 3), LETTERS.tokens_O)
    rows = [3, 0, 6, 8]
    start_QCE = bank.states(rows).pathway_at((2, 3))
    table = tabulate([[row] for row in rows])
    problem = pose(engine, bank, table, start_QCE, core_experts=None)
    own_Q = -bank.logits_NO.log_softmax(-1)[rows, bank.gold_N[rows]]
    torch.testing.assert_close(problem.surrogate_Q(start_QCE), own_Q, rtol=0, atol=1e-6)
    other = (bank.gold_N[rows] + 1) % bank.options_N[rows]
    control = pose(engine, bank, table, start_QCE, core_experts=None, gold_QN=other[:, None])
    false_Q = -bank.logits_NO.log_softmax(-1)[rows, other]
    torch.testing.assert_close(control.surrogate_Q(start_QCE), false_Q, rtol=0, atol=1e-6)


def test_sigmoid_scores_are_on_no_simplex() -> None:
    moe = find_moe(make_model("deepseek_v3"))
    bank = build_bank(moe, LETTERS, QUESTIONS[:3], first=2)
    engine = SuffixEngine(moe, (2, 3), LETTERS.tokens_O)
    start_QCE = bank.states([0]).pathway_at((2, 3))
    assert not pose(engine, bank, tabulate([[1, 2]]), start_QCE, core_experts=None).simplex


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "qwen3_moe", "gpt_oss"])
def test_a_core_holds_what_the_model_itself_turns_on(family: str) -> None:
    """DeepSeek chooses by groups and by a bias, so its experts are not simply the strongest."""
    moe = find_moe(make_model(family))
    bank = build_bank(moe, LETTERS, QUESTIONS, first=2)
    engine = SuffixEngine(moe, (2, 3), LETTERS.tokens_O)
    rows = list(range(len(QUESTIONS)))
    start_QCE = bank.states(rows).pathway_at((2, 3))
    itself = tabulate_neighbours([found(row) for row in rows], 1)
    problem = pose(engine, bank, itself, start_QCE, core_experts=moe.layers[0].rule.top_k)
    with torch.no_grad():
        losses_Q = problem.objective(start_QCE, core_QCE=problem.core_QCE())[:, 0]
    expected_Q = torch.nn.functional.cross_entropy(bank.logits_NO, bank.gold_N, reduction="none")
    assert losses_Q.double() == pytest.approx(expected_Q.double(), abs=1e-5)
    taken = problem.take(torch.tensor([4, 1]))
    assert torch.equal(taken.core_QCE(), problem.core_QCE()[[4, 1]])
