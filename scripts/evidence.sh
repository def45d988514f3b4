#!/usr/bin/env bash
# Does training work, and what does it work by? GRPO of the embedded model with each reward's credit
# at its own sections (section) or one advantage a completion (sequence, as published), and, for the
# first seed, with each reward left out. Before and after training the same prompts get the same
# noise: crops of training photos that no training crop touches (test_crops), and photos never used.
#   bash scripts/evidence.sh [SEED ...]        (default: 0 1 2; two runs at a time, a core each)
# Started again it goes on where it was. Writes the tables into docs/results.md, and figs/evidence.png.
# On a machine without apt: SOURCE=wheels bash scripts/evidence.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seeds=("$@"); [ $# -gt 0 ] || seeds=(0 1 2)
work=outputs/evidence recipe=configs/recipes/tiny_evidence.yaml model=assets/tiny
rewards=(format degradation understanding generation)
bash setup.sh
export HF_HUB_OFFLINE=1  # everything is here
python=.venv/bin/python
realsr() { "$python" -m realsr_r1.cli "$@"; }

[ -d "$work/photos" ] || "$python" scripts/tools/gather_photos.py --source "${SOURCE:-all}" --output "$work/photos"
unseen=$("$python" - "$work/photos" <<'PY'
import json, pathlib, sys
photos = json.load(open("assets/photos/photos.json"))
print(",".join(p["name"] for p in photos if p["held_out"] and (pathlib.Path(sys.argv[1]) / f"{p['name']}.png").is_file()))
PY
)
realsr create-json --images "$work/photos" --tags assets/photos/tags --descriptions assets/photos/descriptions \
    --degradation configs/degradation/tiny.yaml --crop_px 48 --crops_per_photo 40 --test_crops_per_photo 24 \
    --crop_scales 0.08,1.0 --test_photos "$unseen" --skip_bad --output "$work/dataset"

score() {  # name model label split seed [flags]
    [ -f "$work/$1.json" ] || realsr score --model "$2" --label "$3" --dataset_name "$work/dataset" --split "$4" \
        --seed "$5" --samples 360 --batch_size 60 --recipe "$recipe" --monitor_experts fsim gmsd vsi \
        --output "$work/$1.json" "${@:6}"
}
train() {  # case seed [flags]: train, score on both splits
    local case=$1 seed=$2 run=$work/$1-$2
    [ -f "$run/generation_config.json" ] || realsr grpo --config "$recipe" --model_name_or_path "$model" --dataset_name "$work/dataset" \
        --output_dir "$run" --seed "$seed" "${@:3}"
    for split in test test_crops; do
        score "after-$split-$case-$seed" "$run" "$case, seed $seed" "$split" "$seed" --compare "$work/before-$split-$seed.json"
    done
}
lane() {  # number: every second job
    local job=0 seed left
    for seed in "${seeds[@]}"; do
        for case in section sequence; do
            [ $((job++ % 2)) != "$1" ] || train "$case" "$seed" --credit "$case"
        done
    done
    for left in "${rewards[@]}"; do
        [ $((job++ % 2)) != "$1" ] || train "without_$left" "${seeds[0]}" --credit section \
            --reward_funcs $(printf '%s\n' "${rewards[@]}" | grep -vx "$left")
    done
}

for seed in "${seeds[@]}"; do
    for split in test test_crops; do score "before-$split-$seed" "$model" "cold start" "$split" "$seed"; done
done
mkdir -p "$work"
lane 0 > "$work/lane_0.log" 2>&1 & first=$!
trap 'kill "$first" 2>/dev/null || true' EXIT
lane 1 2>&1 | tee "$work/lane_1.log"
wait "$first"
"$python" scripts/tools/evidence_table.py "$work" --page docs/results.md --figure figs/evidence.png
