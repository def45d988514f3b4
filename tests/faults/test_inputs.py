"""The campaign of bad inputs (scripts/tools/fault_campaign.py) in its short form.

A few cases of every command, drawn anew with each commit's own seed: no traceback, nothing over
20 s, exit code 2 and one line, nothing half-written.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EACH = 6


def test_bad_input_to_every_command_is_one_line_and_exit_code_2(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "tools" / "fault_campaign.py"), "inputs", "--each", str(EACH),
         "--work", str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "| all | " in done.stdout
