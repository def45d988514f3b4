"""`setup.sh` empties nothing that isn't its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_venv_that_is_a_link_is_refused_and_what_it_links_to_is_left_alone(tmp_path):
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "shared_env"
    checkout.mkdir()
    for name in ("setup.sh", "requirements.txt", "requirements-demo.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    (elsewhere / "bin").mkdir(parents=True)
    (elsewhere / "bin/tool").write_text("somebody's")
    (checkout / ".venv").symlink_to(elsewhere)
    done = subprocess.run(["bash", "setup.sh"], cwd=checkout, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f".venv is a link to {elsewhere}" in done.stderr and "remove the link" in done.stderr
    assert (elsewhere / "bin/tool").read_text() == "somebody's"
