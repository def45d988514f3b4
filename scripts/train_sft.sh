#!/usr/bin/env bash
# Cold start: RECIPE=... DATASET=... MODEL=... OUTPUT=... NPROC=6 bash scripts/train_sft.sh [flags]
# On several machines add NNODES, MASTER_ADDR and, on each, its NODE_RANK (0 on the first); their
# storage must be shared. MAX_RESTARTS=N as in train_multinode.sh.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)  # paths, and modules of your own, are the caller's
: "${RECIPE:?name the recipe: RECIPE=configs/recipes/...}" "${DATASET:?name the dataset folder: DATASET=...}"
: "${MODEL:?name the model or tokenizer folder: MODEL=...}" "${OUTPUT:?name the run folder: OUTPUT=...}"
exec "${PYTHON:-$root/.venv/bin/python}" "$root/scripts/tools/torchrun.py" --nproc_per_node="${NPROC:-6}" --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" --max_restarts="${MAX_RESTARTS:-0}" --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${MASTER_PORT:-11318}" \
    "$root/src/realsr_r1/sft.py" --config "$RECIPE" --dataset_name "$DATASET" --model_name_or_path "$MODEL" --output_dir "$OUTPUT" "$@"
