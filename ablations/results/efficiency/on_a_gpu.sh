#!/usr/bin/env bash
# What has to be measured on a GPU (80 GiB for training), part by part, each into a folder below $OUT (here):
#     bash ablations/results/efficiency/on_a_gpu.sh [table1] [flashsloth] [training] [compiled]
# QUICK=1 tries the same commands at `tiny`, on any machine. PYTHON: which one.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
run() {  # FOLDER SETTINGS...
    local folder=$1; shift
    "${PYTHON:-python}" -m experiments.efficiency "$@" to="${OUT:-$here}/$folder"
}
full=(preset=flashsloth) models=(table1=true measure=true)
if [ -n "${QUICK:-}" ]; then
    full=(trainer.precision=32) models=(compressor=identity)
fi
[ $# -gt 0 ] || set -- table1 flashsloth training compiled
for part; do case $part in
    table1) run table1_gpu "${models[@]}" batch=1,8 rounds=5 static=true ;;
    flashsloth) run flashsloth_gpu "${full[@]}" compressor=sap+embq,sap,avg_pool,identity batch=1,8 rounds=5 static=true ;;
    training) run training_gpu train=true "${full[@]}" compressor=sap+embq,identity rounds=3 ;;
    compiled) run training_compiled_gpu train=true "${full[@]}" compressor=sap+embq trainer.compile=true rounds=3 ;;
    *) echo "$part: no such part; there are table1, flashsloth, training and compiled" >&2; exit 2 ;;
esac; done
