#!/usr/bin/env bash
# Rebuild the embedded model (assets/tiny) from nothing: photographs, dataset, tokenizers, cold
# start, export. Takes about four hours on 2 cores, and ten minutes on one H100 with 16 cores, where
# it does fifty times as much. Started again after an interruption it goes on where it was.
#   bash scripts/build_tiny.sh [WORK_FOLDER]      (default: outputs/build_tiny; what it makes: WORK_FOLDER/tiny)
# The result replaces assets/tiny only with: INSTALL=1 bash scripts/build_tiny.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=${1:-outputs/build_tiny}
bash setup.sh
export HF_HUB_OFFLINE=1  # everything is here
python=.venv/bin/python
realsr() { "$python" -m realsr_r1.cli "$@"; }
stage() { printf '\n== %s (%s s since start)\n' "$1" "$SECONDS"; }

if "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    crops=600
    tokenizers=(--max_steps 3500 --batch_size 128 --num_workers 8)
    cold_start=(--max_steps 2286 --per_device_train_batch_size 128 --max_samples 1000000 --learning_rate 1.5e-3
                --warmup_steps 150 --bf16 true --sample_steps 0 --dataloader_num_workers 12
                --dataloader_prefetch_factor 8 --dataloader_persistent_workers true)
else
    crops=100 tokenizers=() cold_start=()  # the recipes' own numbers are for two CPU cores
fi

stage "photographs"
"$python" scripts/tools/gather_photos.py --source all --output "$work/photos"
held_out=$("$python" -c "import json; print(','.join(p['name'] for p in json.load(open('assets/photos/photos.json')) if p['held_out']))")

stage "dataset: crops at native size down to whole photos, degraded, with true labels"
realsr create-json --images "$work/photos" --tags assets/photos/tags --descriptions assets/photos/descriptions \
    --degradation configs/degradation/tiny.yaml --crop_px 48 --crops_per_photo "$crops" --test_crops_per_photo 12 \
    --crop_scales 0.08,1.0 --test_photos "$held_out" --skip_bad --output "$work/dataset"

stage "tokenizers"
realsr train-tokenizer --config configs/recipes/tiny_tokenizer.yaml --dataset_name "$work/dataset" --output_dir "$work/tokenizers" \
    --chain_settings configs/chain/tiny.yaml "${tokenizers[@]}"

stage "chains to tokens"
realsr pretokenise --dataset_name "$work/dataset" --model_name_or_path "$work/tokenizers" --output_dir "$work/tokens"

stage "cold start"
realsr sft --config configs/recipes/tiny_sft.yaml --dataset_name "$work/tokens" --model_name_or_path "$work/tokenizers" \
    --output_dir "$work/cold_start" "${cold_start[@]}"

stage "export in float16"
realsr export --checkpoint "$work/cold_start" --output "$work/tiny" --dtype float16 --licences assets/photos/licences.yaml
du -sh "$work/tiny"
if [ "${INSTALL:-0}" = 1 ]; then
    rm -rf assets/tiny && cp -r "$work/tiny" assets/tiny
fi
stage "done"
