#!/usr/bin/env bash
# Set-up, then the whole test suite. Arguments go to pytest:
#   bash scripts/test.sh tests/chain -k parse
set -euo pipefail
started=$SECONDS
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
bash setup.sh

# Two workers, for training runs wait a good deal; one thread a process: runs repeat exactly and
# don't fight over cores.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1
export CUDA_VISIBLE_DEVICES=  # two ranks of a test would meet on one GPU
export HF_HUB_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false
export PYTHONDONTWRITEBYTECODE=  # some 200 processes would compile the package, each for itself

status=0
.venv/bin/python -m pytest -n 2 --durations=10 "$@" || status=$?
echo "[test] $((SECONDS - started)) s, set-up included"
exit "$status"
