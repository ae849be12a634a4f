"""Pages that a command writes: what is committed is what it writes today."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, page",
    [
        ("samplers_page.py", "docs/samplers.md"),
        ("identities.py", "results/identities/README.md"),
    ],
)
def test_a_page_is_up_to_date(script, page, tmp_path):
    subprocess.run([sys.executable, ROOT / "experiments" / script], cwd=tmp_path, check=True)
    told = f"python experiments/{script} writes another {page} than the one committed"
    assert (tmp_path / page).read_text() == (ROOT / page).read_text(), told
