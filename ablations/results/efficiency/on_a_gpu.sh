#!/usr/bin/env bash
# What has to be measured on a GPU, in parts that are each meant to end within eight minutes on one card of 80 GB:
#     bash ablations/results/efficiency/on_a_gpu.sh [PART ...]      these parts; all of them if none is named
#     bash ablations/results/efficiency/on_a_gpu.sh list            the parts, and which are done
#     bash ablations/results/efficiency/on_a_gpu.sh figures         the figures that they are for, with definitions
# The first five parts are those that `figures` needs; they come first, so that little time is spent on them.
# A part writes the folder $OUT/PART (below this file: gpu/PART). One whose folder is there is done and is left out;
# delete the folder to measure it again. A part that was broken off leaves PART.unfinished and begins anew.
# LIMIT: seconds after which a part is ended, and the next begins (480).
# QUICK=1 tries the same commands at `tiny`, on any machine, and needs an OUT of its own. PYTHON: which one.
# Nothing is downloaded: models have random weights. Beside torch Python needs transformers, lightning, torchmetrics,
# einops, omegaconf, rich, matplotlib and scipy, but no open_clip; and the project itself, by which settings know
# data sets and metrics: pip install --no-deps --no-build-isolation -e ., or a checkout with its slothkit.egg-info.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
export PYTHONPATH="$here/../../..${PYTHONPATH:+:$PYTHONPATH}"
parts=(answers training_flashsloth decoding decoding_dynamic answers_compiled training_uncompressed training_compiled
    table1_flashsloth table1_flashsloth_hd table1_imp table1_mobilevlm table1_mobilevlm_small table1_llava table1_qwen2_vl
    table1_internvl2)
if [ -n "${QUICK:-}" ] && [ -z "${OUT:-}" ]; then
    echo "QUICK=$QUICK: give OUT=FOLDER too, so that trials do not stand among measurements" >&2
    exit 2
fi
out=${OUT:-$here/gpu}

cells=(preset=flashsloth rounds=5) timed=(rounds=5)
if [ -n "${QUICK:-}" ]; then
    cells=(trainer.precision=32 rounds=1) timed=(rounds=1)
fi

measure() {  # PART SETTINGS...: written beside its place, and moved there when it is whole
    local part=$1 status=0; shift
    rm -rf "$out/$part.unfinished"
    # in the foreground: Ctrl-C reaches what is measured
    timeout --foreground "${LIMIT:-480}" "$python" -m experiments.efficiency "$@" to="$out/$part.unfinished" || status=$?
    [ "$status" != 130 ] || exit 130
    if [ "$status" = 124 ]; then
        echo "$part: not done within ${LIMIT:-480} seconds; LIMIT=SECONDS gives it more" >&2
    fi
    if [ "$status" != 0 ]; then
        failed+=("$part")
        return 0
    fi
    mv "$out/$part.unfinished" "$out/$part"
}

measure_published() {  # PART LABEL: a model of Table 1
    if [ -n "${QUICK:-}" ]; then  # 2 to 7 billion weights: counted alone
        measure "$1" only="$2"
    else
        measure "$1" only="$2" measure=true batch=1,8 static=true "${timed[@]}"
    fi
}

run_part() {
    case $1 in
        answers) measure "$1" "${cells[@]}" compressor=sap+embq,sap,avg_pool,identity batch=1,8 tokens=9 ;;
        answers_compiled) measure "$1" "${cells[@]}" compressor=sap+embq,identity compile=true tokens=1 ;;
        decoding) measure "$1" "${cells[@]}" compressor=sap+embq,identity static=true tokens=65 ;;
        decoding_dynamic) measure "$1" "${cells[@]}" compressor=sap+embq,identity tokens=65 ;;
        training_flashsloth) measure "$1" "${cells[@]}" train=true compressor=sap+embq ;;
        training_uncompressed) measure "$1" "${cells[@]}" train=true compressor=identity ;;
        training_compiled) measure "$1" "${cells[@]}" train=true compressor=sap+embq trainer.compile=true ;;
        table1_flashsloth) measure_published "$1" FlashSloth ;;
        table1_flashsloth_hd) measure_published "$1" FlashSloth-HD ;;
        table1_imp) measure_published "$1" Imp-3B ;;
        table1_mobilevlm) measure_published "$1" MobileVLM-V2-3B ;;
        table1_mobilevlm_small) measure_published "$1" MobileVLM-V2-1.7B ;;
        table1_llava) measure_published "$1" LLaVA-1.5-7B ;;
        table1_qwen2_vl) measure_published "$1" Qwen2-VL-2B ;;
        table1_internvl2) measure_published "$1" InternVL2-2B ;;
    esac
}

check_parts() {
    local name
    for name; do
        case " ${parts[*]} " in
            *" $name "*) ;;
            *) echo "$name: no such part; there are ${parts[*]}, and list and figures" >&2; exit 2 ;;
        esac
    done
}

case ${1:-} in
    list)
        for part in "${parts[@]}"; do
            if [ -d "$out/$part" ]; then echo "$part: done"; else echo "$part"; fi
        done
        exit ;;
    figures) exec "$python" -m ablations.costs.on_a_gpu "$out" ;;
esac
[ $# -gt 0 ] || set -- "${parts[@]}"
check_parts "$@"
failed=()
for part; do
    if [ -d "$out/$part" ]; then
        echo "$part: done before"
        continue
    fi
    echo "$part"
    run_part "$part"
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "not done: ${failed[*]}" >&2
    exit 1
fi
