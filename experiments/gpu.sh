#!/usr/bin/env bash
# The study at its GPU size (ResNet-50, 224 px), one method a run of less than nine minutes, from the repository's root:
#
#     IMAGES="FOLDER ..." MASKS=... BOXES=... OUT=runs/gpu bash experiments/gpu.sh resim-fpn moco-v2 resim-c4
#
# Each call does what fits into BUDGET seconds and stops with its state saved; the same call goes on there. Each method is
# trained and probed, then all detectors are trained; `python experiments/tables.py $OUT` prints the tables. COPY: a
# folder for results.csv and the metrics, without the checkpoints.
# STUDY: further options of study.py (--test-labels, --test-detect, --merge, --regimes, --seeds).
set -uo pipefail
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python=${PYTHON:-python3} size=${SIZE:-gpu} pairs=${PAIRS:-300000} out=${OUT:-runs/gpu} budget=${BUDGET:-520}
methods=("$@")
((${#methods[@]})) || methods=(resim-fpn moco-v2 resim-c4)
began=$SECONDS

save() { # what is small enough to keep
    [ -n "${COPY:-}" ] || return 0
    mkdir -p "$COPY"
    cp -f "$out/results.csv" "$COPY/" 2>/dev/null
    for run in "$out"/*-seed*; do
        [ -f "$run/metrics.jsonl" ] && cp -f "$run/metrics.jsonl" "$COPY/$(basename "$run").jsonl"
    done
    return 0
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null
# shellcheck disable=SC2086  # IMAGES and STUDY are lists
timeout -s TERM -k 30 "$budget" "$python" experiments/study.py $IMAGES --labels "$MASKS" ${BOXES:+--detect "$BOXES"} \
    --out "$out" --size "$size" --pairs "$pairs" --methods "${methods[@]}" --no-curves ${STUDY:---seeds 0 --regimes frozen}
code=$?
save
echo "--- $((SECONDS - began)) s, ended with $code (124: the time was over, go on with the same command)"
[ "$code" = 124 ] && exit 0
exit "$code"
