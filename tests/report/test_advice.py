"""What pages advise is what the committed rows say."""

from pathlib import Path

import numpy as np
import pytest

from optdiff.report.cells import boards
from optdiff.report.intervals import marks
from optdiff.results import load

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def studies():
    return {name: boards(load(RESULTS / name))[0] for name in ("few_step", "text_to_image")}


def mean(board, method, budget, metric):
    return np.mean([*board.cells[method, budget].values[metric].values()])


FRECHET = {"few_step": "frechet", "text_to_image": "judge_frechet"}
NEARNESS = {"few_step": "trajectory_error", "text_to_image": "latent_error"}


def test_momentum_is_above_ddim_on_frechet_distance_at_every_budget(studies):
    for name, metric in FRECHET.items():
        board = studies[name]
        for budget in board.budgets:
            ddim, momentum = (mean(board, m, budget, metric) for m in ("ddim", "momentum"))
            assert momentum > ddim, (name, budget)
            assert budget > 6 or marks(board, metric, budget)["momentum"] == "worse"


def test_at_three_and_four_it_depends_on_the_question(studies):
    board, metric = studies["text_to_image"], "attribute_accuracy"
    for budget, best, shares in [(3, "ddim", (0.89, 0.68)), (4, "ancestral", (0.94, 0.75))]:
        shown = [mean(board, m, budget, metric) for m in ("ddim", "dpmpp_2m")]
        assert shown == pytest.approx(shares, abs=0.006)
        marked = marks(board, metric, budget)
        assert marked[best] == "best" and marked["ddim"] in ("best", "tie")
        assert marks(board, "judge_frechet", budget)["ipndm"] == "best"
    assert mean(board, "ancestral", 4, metric) == pytest.approx(0.95, abs=0.006)


def test_memory_comes_nearer_to_the_exact_sample(studies):
    """From eight on in both studies, at six in few steps alone; beyond chance, and by 2%."""
    for name, metric in NEARNESS.items():
        board = studies[name]
        for budget in [budget for budget in board.budgets if budget >= 6]:
            ddim, marked = mean(board, "ddim", budget, metric), marks(board, metric, budget)
            if (name, budget) == ("text_to_image", 6):
                assert marked["ddim"] == "tie"
                continue
            assert marked["ddim"] == "worse"
            for method in ("gradient_estimation", "ipndm", "dpmpp_2m"):
                assert mean(board, method, budget, metric) < 0.98 * ddim, (name, method, budget)


def test_noise_shows_what_is_asked_and_two_evaluations_want_many(studies):
    board = studies["text_to_image"]
    for budget in board.budgets[1:]:
        assert marks(board, "attribute_accuracy", budget)["ancestral"] == "best"
        frechet = [mean(board, m, budget, "judge_frechet") for m in ("ancestral", "ddim")]
        assert frechet[0] > frechet[1]
    for name, metric in FRECHET.items():
        board = studies[name]
        for budget in [budget for budget in board.budgets if budget <= 8]:
            heun, ddim = (mean(board, m, budget, metric) for m in ("heun", "ddim"))
            assert heun > 1.5 * ddim
