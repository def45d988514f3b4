#!/usr/bin/env bash
# Everything that only a GPU can show, within minutes: the same numbers as a CPU's, a training run,
# speed and memory of rollouts and the loss at 7B beside the plan. Writes OUTPUT/gpu_check.md and .json.
#   bash scripts/gpu_check.sh                        with the .venv of setup.sh
#   bash scripts/gpu_check.sh --minutes 8 --output FOLDER --only rollout_full loss --cpu_tests 6
#   bash scripts/gpu_check.sh --wheels DIR           on a bare machine without network, whose python3 has
#       torch, and DIR what else it lacks; elsewhere, for Python 3.12:
#       pip download --no-deps --only-binary=:all: --python-version 3.12 -d DIR -c requirements.txt \
#           transformers trl peft datasets pyiqa pydantic pydantic-core typing-inspection annotated-types \
#           multiprocess dill hjson
#       pip wheel --no-deps -w DIR -c requirements.txt deepspeed
# Without a GPU its checks are marked as not run; --rehearse runs them small on the CPU.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-} wheels='' flags=()
while [ $# -gt 0 ]; do
    case $1 in
        --wheels) wheels=${2:-none}; if [ $# -gt 1 ]; then shift; fi ;;
        *) flags+=("$1") ;;
    esac
    shift
done
if [ -n "$wheels" ]; then
    [ -d "$wheels" ] || { echo "gpu_check.sh: --wheels $wheels is no folder; fill it as this file says" >&2; exit 2; }
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    python=$(command -v "${python:-python3}")
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
    PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
elif [ -z "$python" ]; then
    python=$root/.venv/bin/python
    [ -x "$python" ] || bash "$root/setup.sh"
fi
export PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH} PYTHON=$python
"$python" "$root/scripts/tools/gpu_check.py" "${flags[@]}"
