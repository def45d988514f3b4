#!/usr/bin/env bash
# Photos -> a dataset, and with MODEL the token ids of its chains, which the cold start reads. For
# example:
#   OUTPUT=data/lsdir bash scripts/prepare_data.sh --images photos --tags tags.jsonl \
#       --descriptions descriptions.jsonl
#   OUTPUT=data/lsdir MODEL=models/pure bash scripts/prepare_data.sh --images ...
# The second one also writes the tokens, to data/lsdir-tokens. The flags are create-json's. One
# machine's share of several: SHARD=1/16; when all are made: MERGE=1; then a share of the tokens:
# TOKENS=1 SHARD=1/4 (see prepare_data.slurm). Started again, everything goes on where it was.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)  # paths, and modules of your own, are the caller's
: "${OUTPUT:?name the dataset folder to make: OUTPUT=...}"
realsr() { "${PYTHON:-$root/.venv/bin/python}" -m realsr_r1.cli "$@"; }

if [ -n "${MERGE:-}" ]; then
    realsr create-json --output "$OUTPUT" --merge "$@"
elif [ -z "${TOKENS:-}" ]; then
    realsr create-json --output "$OUTPUT" ${SHARD:+--shard "$SHARD"} "$@"
fi
skip_bad=
for flag in "$@"; do [ "$flag" != --skip_bad ] || skip_bad=--skip_bad; done
if [ -n "${TOKENS:-}" ] || { [ -n "${MODEL:-}" ] && [ -z "${SHARD:-}" ]; }; then
    realsr pretokenise --dataset_name "$OUTPUT" --model_name_or_path "${MODEL:?name the model folder: MODEL=...}" \
        --output_dir "$OUTPUT-tokens" $skip_bad ${TOKENS:+${SHARD:+--shard "$SHARD"}}
fi
