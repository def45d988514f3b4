#!/usr/bin/env bash
# Rebuild the embedded model (assets/tiny) from nothing: photographs, dataset, tokenizers, cold
# start, export. Takes about three hours on 2 cores. Started again after an interruption it goes on
# where it was.
#   bash scripts/build_tiny.sh [WORK_FOLDER]      (default: outputs/build_tiny; what it makes: WORK_FOLDER/tiny)
# The result replaces assets/tiny only with: INSTALL=1 bash scripts/build_tiny.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=${1:-outputs/build_tiny}
bash setup.sh
source scripts/cpu_env.sh
python=.venv/bin/python
realsr() { "$python" -m realsr_r1.cli "$@"; }
stage() { printf '\n== %s (%s s since start)\n' "$1" "$SECONDS"; }

stage "photographs"
"$python" scripts/tools/gather_photos.py --source all --output "$work/photos"
held_out=$("$python" -c "import json; print(','.join(p['name'] for p in json.load(open('assets/photos/photos.json')) if p['held_out']))")

stage "dataset: crops of several scales, degraded, with true labels"
realsr create-json --images "$work/photos" --tags assets/photos/tags --descriptions assets/photos/descriptions \
    --degradation configs/degradation/tiny.yaml --crop_px 48 --crops_per_photo 440 --test_crops_per_photo 12 \
    --crop_scales 0.15,1.0 --test_photos "$held_out" --output "$work/dataset"

stage "tokenizers"
realsr train-tokenizer --config configs/recipes/tiny_tokenizer.yaml --dataset_name "$work/dataset" --output_dir "$work/tokenizers"

stage "cold start"
realsr sft --config configs/recipes/tiny_sft.yaml --dataset_name "$work/dataset" --model_name_or_path "$work/tokenizers" \
    --output_dir "$work/cold_start"

stage "export in float16"
realsr export --checkpoint "$work/cold_start" --output "$work/tiny" --dtype float16 \
    --sampling temperature=0.7 guidance_scale=1.0 text_top_k=1 image_top_k_max=100 max_text_tokens=60 max_new_tokens=600
du -sh "$work/tiny"
if [ "${INSTALL:-0}" = 1 ]; then
    rm -rf assets/tiny && cp -r "$work/tiny" assets/tiny
fi
stage "done"
