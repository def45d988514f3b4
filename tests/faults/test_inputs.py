"""The campaign of bad inputs (scripts/tools/fault_campaign.py) in its short form.

A good case and a bad one of every command, in children of one process: no traceback, nothing that
computes for over 20 s, exit code 2 and one line, nothing half-written. The long form is run by hand;
docs/reliability.md has its table.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from realsr_r1.cli import COMMANDS

CAMPAIGN = Path(__file__).resolve().parents[2] / "scripts" / "tools" / "fault_campaign.py"


def test_bad_input_to_every_command_is_one_line_and_exit_code_2(tmp_path):
    done = subprocess.run([sys.executable, str(CAMPAIGN), "inputs", "--each", "1", "--work", str(tmp_path)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert all(f"| `{command}" in done.stdout for command in COMMANDS)
