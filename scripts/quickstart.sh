#!/usr/bin/env bash
# The whole job on real photographs, without GPU or internet: dataset, GRPO from the embedded cold
# start, export, restore, evaluate, report. A finished stage is not run again; only evaluation and
# report are, in seconds.
#   bash scripts/quickstart.sh                  outputs/quickstart
#   bash scripts/quickstart.sh --fresh          from the beginning
#   bash scripts/quickstart.sh --from_scratch   with tokenizers and cold start, short: a rough model
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=outputs/quickstart
fresh=0 from_scratch=0
for flag in "$@"; do
    case $flag in
        --fresh) fresh=1 ;;
        --from_scratch) from_scratch=1; work=outputs/quickstart_from_scratch ;;
        *) echo "quickstart.sh: unknown flag $flag (known: --fresh, --from_scratch)" >&2; exit 2 ;;
    esac
done
[ "$fresh" = 0 ] || rm -rf "$work"

times=()
stage() {  # stage "name" command ...: run it, note its time
    local name=$1 start=$SECONDS; shift
    printf '\n== %s\n' "$name"
    "$@"
    times+=("$(printf '%-42s %5d s' "$name" $((SECONDS - start)))")
}

stage "set-up" bash setup.sh
export HF_HUB_OFFLINE=1  # everything is here
python=.venv/bin/python
realsr() { "$python" -m realsr_r1.cli "$@"; }
data=$work/dataset model=assets/tiny run=$work/grpo recipe=configs/recipes/tiny_grpo.yaml

stage "photographs" "$python" scripts/tools/gather_photos.py --source wheels --output "$work/photos"
stage "dataset" realsr create-json --images "$work/photos" --tags assets/photos/tags \
    --descriptions assets/photos/descriptions --degradation configs/degradation/tiny.yaml --crop_px 48 \
    --crops_per_photo 24 --test_crops_per_photo 16 --crop_scales 0.08,1.0 --test_photos coffee,rocket,flower \
    --skip_bad --output "$data"
if [ "$from_scratch" = 1 ]; then
    stage "tokenizers" realsr train-tokenizer --config configs/recipes/tiny_tokenizer.yaml --max_steps 200 \
        --dataset_name "$data" --chain_settings configs/chain/tiny.yaml --output_dir "$work/tokenizers"
    stage "cold start" realsr sft --config configs/recipes/tiny_sft.yaml --num_train_epochs 2 --dataset_name "$data" \
        --model_name_or_path "$work/tokenizers" --output_dir "$work/cold_start"
    model=$work/cold_start
fi

# Two processes on a CPU; with GPUs one a GPU, for NCCL refuses two on one.
processes=$("$python" -c 'import torch; print(min(torch.cuda.device_count() or 2, 2))')
grpo() { NPROC=$processes RECIPE=$recipe MODEL=$model DATASET=$data OUTPUT=$run bash scripts/train_grpo.sh \
    --compare_with published; }
export_model() { realsr export --checkpoint "$run" --output "$work/model" --dtype float16 \
    --licences assets/photos/licences.yaml "$@"; }
score() { [ -f "$work/$1.json" ] || realsr score --model "$2" --dataset_name "$data" --samples 208 --batch_size 52 --recipe "$recipe" \
    --label "$3" --output "$work/$1.json" "${@:4}"; }
evaluate() { realsr evaluate --restored "$work/restored" --gt "$work/unseen/hq" --lq "$work/unseen/lq" \
    --output "$work/evaluation"; }
figure() { "$python" scripts/tools/make_figure.py --whole --restored "$work/restored" --lq "$work/unseen/lq" \
    --gt "$work/unseen/hq" --output "$work/restored.png"; }
report() { realsr report --run "$run" --restored "$work/restored" --gt "$work/unseen/hq" \
    --metrics "$work/evaluation/metrics.json" --compare "$work/before.json" "$work/after.json"; }

stage "rewards before" score before "$model" "cold start"
stage "GRPO, processes: $processes, DeepSpeed ZeRO-3" grpo
stage "export" export_model
stage "rewards after" score after "$work/model" "after GRPO" --compare "$work/before.json"
stage "whole photos never used, degraded" "$python" scripts/tools/degrade_photos.py --photos "$work/photos" \
    --names coffee,rocket,flower --degradation configs/degradation/tiny.yaml --longest_side 256 --output "$work/unseen"
stage "restore" realsr restore --model "$work/model" --input "$work/unseen/lq" --output "$work/restored"
stage "evaluate" evaluate
stage "model card" export_model --metrics "$work/evaluation/metrics.json"
stage "figure" figure
stage "report" report

printf '\n== time of each stage\n'
printf '%s\n' "${times[@]}"
printf 'total %s s\n\n' "$SECONDS"
"$python" - "$work" <<'PY'
import sys
from pathlib import Path
from realsr_r1 import evaluate, score
from realsr_r1.core.json_yaml import read_json
from realsr_r1.reporting.tables import MetricsFile
from realsr_r1.score import ScoreFile
work = Path(sys.argv[1])
score.print_table(read_json(work / "after.json", ScoreFile), read_json(work / "before.json", ScoreFile))
evaluate.print_table(read_json(work / "evaluation/metrics.json", MetricsFile))
PY
cat <<TEXT

The first table: the rewards of crops that were not trained on, before and after 16 steps of GRPO. A
difference is more than chance where its interval leaves out 0; so few steps show that everything
runs, and can't make a better restorer. The second table: three whole photos that nothing was
trained on, beside their degraded input. (PIQE takes noise for detail; docs/results.md says more.)

  see them: degraded | restored | original     $work/restored.png
  everything about the run                     $run/report/report.html

To go on:
  your own photos             .venv/bin/realsr-r1 restore --model $work/model --input PHOTOS --output restored
  three seeds, what gains     bash scripts/evidence.sh
  real weights and GPUs       docs/published_weights.md
TEXT
