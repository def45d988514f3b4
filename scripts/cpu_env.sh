# Sourced by the CPU scripts. Where there is no GPU: one thread a process, and no giving memory back
# between operations (glibc returns large blocks at once; taking them again was 40 % of the
# processor time when the tokenizer trained). oneDNN keeps what it made for 1,024 shapes by default,
# which in the cold start, whose rows all differ in length, is much memory.
if ! command -v nvidia-smi >/dev/null 2>&1; then
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000 MALLOC_TOP_PAD_=67108864
    export ONEDNN_PRIMITIVE_CACHE_CAPACITY=256
fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
