"""What pages advise is what the committed rows say."""

from pathlib import Path

import numpy as np
import pytest

from optdiff.report.cells import boards
from optdiff.results import load

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def studies():
    return {name: boards(load(RESULTS / name))[0] for name in ("few_step", "text_to_image")}


def mean(board, method, budget, metric):
    return np.mean([*board.cells[method, budget].values[metric].values()])


def test_momentum_is_behind_ddim_at_every_budget(studies):
    for name, metric in {"few_step": "frechet", "text_to_image": "judge_frechet"}.items():
        board = studies[name]
        for budget in board.budgets:
            ddim, momentum = (mean(board, m, budget, metric) for m in ("ddim", "momentum"))
            assert momentum > ddim, (name, budget)


def test_at_three_and_four_it_depends_on_the_question(studies):
    board = studies["text_to_image"]
    for budget, shares in {3: (0.89, 0.68), 4: (0.94, 0.75)}.items():
        shown = [mean(board, m, budget, "attribute_accuracy") for m in ("ddim", "dpmpp_2m")]
        assert shown == pytest.approx(shares, abs=0.006)
        distances = {m: mean(board, m, budget, "judge_frechet") for m in board.methods}
        assert min(distances, key=distances.get) == "ipndm"


def test_from_six_on_memory_comes_nearer_to_the_exact_sample(studies):
    for name, metric in {"few_step": "trajectory_error", "text_to_image": "latent_error"}.items():
        board = studies[name]
        for budget in [budget for budget in board.budgets if budget >= 6]:
            ddim = mean(board, "ddim", budget, metric)
            for method in ("gradient_estimation", "ipndm", "dpmpp_2m"):
                assert mean(board, method, budget, metric) < 1.005 * ddim, (name, method, budget)
