#!/usr/bin/env bash
# VLCoT-GRPO on several machines. On each machine, with its own NODE_RANK (0 on the first):
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-host RECIPE=... MODEL=... DATASET=... OUTPUT=... \
#       bash scripts/train_multinode.sh
# OUTPUT, DATASET and MODEL must be on storage that all machines share. With MAX_RESTARTS=N the ranks
# are started again, up to N times, from the last checkpoint when one of them is lost. On
# machines of 8 GPUs with a slow network between them: DEEPSPEED=local_scripts/zero3_multinode.json.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)  # paths, and modules of your own, are the caller's
: "${NNODES:?number of machines}" "${NODE_RANK:?this machine, from 0}" "${MASTER_ADDR:?address of machine 0}"
: "${RECIPE:?name the recipe: RECIPE=configs/recipes/...}" "${MODEL:?name the model folder: MODEL=...}"
: "${DATASET:?name the dataset folder: DATASET=...}" "${OUTPUT:?name the run folder: OUTPUT=...}"
export DEBUG_MODE=${DEBUG_MODE:-false} LOG_PATH=${LOG_PATH:-$OUTPUT/reward_log.txt}
[ "${DEEPSPEED:=local_scripts/zero3.json}" = none ] || set -- --deepspeed "$DEEPSPEED" "$@"
exec "${PYTHON:-$root/.venv/bin/python}" "$root/scripts/tools/torchrun.py" --nnodes="$NNODES" --node_rank="$NODE_RANK" \
    --nproc_per_node="${NPROC:-8}" --max_restarts="${MAX_RESTARTS:-0}" --master_addr="$MASTER_ADDR" --master_port="${MASTER_PORT:-11317}" \
    "$root/src/realsr_r1/grpo.py" --config "$RECIPE" --output_dir "$OUTPUT" --model_name_or_path "$MODEL" \
    --dataset_name "$DATASET" \
    --run_name "${RUN_NAME:-$(basename "$OUTPUT")}" "$@"
