#!/usr/bin/env bash
# Does training work? The quick start's job, longer, with three seeds: rewards before and after GRPO
# on the same prompts and noise, on crops of training photos that no training crop touches
# (test_crops) and on photos never used (test).
#   bash scripts/evidence.sh [SEED ...]        (default: 0 1 2; at most 90 minutes a seed on 2 cores)
# Started again it goes on where it was. Writes outputs/evidence/table.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seeds=("$@"); [ $# -gt 0 ] || seeds=(0 1 2)
work=outputs/evidence recipe=configs/recipes/tiny_evidence.yaml model=assets/tiny
bash setup.sh
source scripts/cpu_env.sh
python=.venv/bin/python
realsr() { "$python" -m realsr_r1.cli "$@"; }

"$python" scripts/tools/gather_photos.py --source wheels --output "$work/photos"
realsr create-json --images "$work/photos" --tags assets/photos/tags --descriptions assets/photos/descriptions \
    --degradation configs/degradation/tiny.yaml --crop_px 48 --crops_per_photo 200 --test_crops_per_photo 48 \
    --crop_scales 0.15,1.0 --test_photos coffee,rocket,flower --skip_bad --output "$work/dataset"

score() {  # name model label split seed [flags]
    [ -f "$work/$1.json" ] || realsr score --model "$2" --label "$3" --dataset_name "$work/dataset" --split "$4" --seed "$5" \
        --samples "$([ "$4" = test ] && echo 72 || echo 576)" --batch_size 64 --recipe "$recipe" --output "$work/$1.json" "${@:6}"
}
for seed in "${seeds[@]}"; do
    started=$SECONDS run=$work/grpo-$seed
    NPROC=2 RECIPE=$recipe MODEL=$model DATASET=$work/dataset OUTPUT=$run bash scripts/train_grpo.sh --seed "$seed"
    for split in test_crops test; do
        score "before-$split-$seed" "$model" "cold start" "$split" "$seed"
        score "after-$split-$seed" "$run" "after GRPO, seed $seed" "$split" "$seed" --compare "$work/before-$split-$seed.json"
    done
    realsr report --run "$run" --compare "$work/before-test_crops-$seed.json" "$work/after-test_crops-$seed.json"
    echo "seed $seed: $((SECONDS - started)) s"
done
"$python" scripts/tools/evidence_table.py "$work" > "$work/table.md"
cat "$work/table.md"
