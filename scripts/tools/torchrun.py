"""`torchrun` whose exit code is that of the first process that failed, and which leaves the message
to that process (`realsr_r1.training.launcher`).
"""

from __future__ import annotations

from realsr_r1.core.errors import run
from realsr_r1.training.launcher import main

if __name__ == "__main__":
    run(main)
