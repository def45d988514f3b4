#!/usr/bin/env bash
# VLCoT-GRPO: the paper's launch line, with what changes from run to run as variables on top:
#   MODEL=models/pure-cold-start DATASET=data/lsdir OUTPUT=runs/grpo bash scripts/train_grpo.sh
#   RECIPE=configs/recipes/tiny_grpo.yaml NPROC=2 MODEL=assets/tiny DATASET=... OUTPUT=... \
#       bash scripts/train_grpo.sh
# Without RECIPE the flags are the paper's, for 6 GPUs. Flags given to this script are added, and
# win. MASTER_PORT=auto takes a free port.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)  # paths, and modules of your own, are the caller's
: "${MODEL:?name the model folder: MODEL=...}" "${DATASET:?name the dataset folder: DATASET=...}" "${OUTPUT:?name the run folder: OUTPUT=...}"
NPROC=${NPROC:-6}                                 # processes = GPUs of this machine
MASTER_PORT=${MASTER_PORT:-11317}
DEEPSPEED=${DEEPSPEED:-local_scripts/zero3.json}  # or none; names and files of this repository are found from anywhere
RECIPE=${RECIPE:-}                                # YAML of settings instead of the paper's flags
RUN_NAME=${RUN_NAME:-$(basename "$OUTPUT")}
PYTHON=${PYTHON:-$root/.venv/bin/python}          # what runs it
ENTRY=${ENTRY:-"$root/src/realsr_r1/grpo.py"}     # or a script with a trainer of your own (docs/extending.md)
export DEBUG_MODE=${DEBUG_MODE:-false} LOG_PATH=${LOG_PATH:-$OUTPUT/reward_log.txt}

if [ -n "$RECIPE" ]; then
    settings=(--config "$RECIPE")
else
    settings=(
        --max_prompt_length 5000 --max_completion_length 7000
        --per_device_train_batch_size 1 --gradient_accumulation_steps 1
        --logging_steps 1 --bf16 --report_to wandb
        --gradient_checkpointing true --attn_implementation flash_attention_2
        --max_pixels 401408 --num_train_epochs 2 --save_steps 1
        --learning_rate=2e-06 --save_only_model true --num_generations 5
    )
fi
[ "$DEEPSPEED" = none ] || settings+=(--deepspeed "$DEEPSPEED")
exec "$PYTHON" "$root/scripts/tools/torchrun.py" --nproc_per_node="$NPROC" --nnodes=1 --node_rank=0 \
    --master_addr=127.0.0.1 --master_port="$MASTER_PORT" "$ENTRY" \
    --output_dir "$OUTPUT" --model_name_or_path "$MODEL" --dataset_name "$DATASET" \
    --run_name "$RUN_NAME" "${settings[@]}" "$@"
