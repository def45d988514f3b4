#!/usr/bin/env bash
# Everything that only a GPU can show, within minutes: the same numbers as a CPU's, a training run,
# speed and memory of rollouts and the loss at 7B beside the plan. Writes OUTPUT/gpu_check.md and .json.
#   bash scripts/gpu_check.sh                                  with the .venv of setup.sh
#   bash scripts/gpu_check.sh --wheels DIR                     on a bare machine without network, whose
#                                                              python3 has torch; DIR has what it lacks:
#       pip download --no-deps --only-binary=:all: --python-version 3.12 -d DIR trl deepspeed peft ...
#   bash scripts/gpu_check.sh --minutes 8 --output FOLDER --only rollout_full loss --rehearse
# Without a GPU its checks are marked as not run; --rehearse runs them small on the CPU.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-}
if [ "${1:-}" = --wheels ]; then
    [ -d "${2:-}" ] || { echo "gpu_check.sh: --wheels ${2:-} is no folder; fill it with pip download" >&2; exit 2; }
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    python=$(command -v "${python:-python3}")
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$2"/*.whl
    export PYTHONPATH="$site:$root/src"
    shift 2
elif [ -z "$python" ]; then
    python=$root/.venv/bin/python
    [ -x "$python" ] || bash "$root/setup.sh"
fi
export PYTHONPATH=${PYTHONPATH:-$root/src} PYTHON=$python
"$python" "$root/scripts/tools/gpu_check.py" "$@"
