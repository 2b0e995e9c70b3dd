#!/usr/bin/env bash
# Every GPU figure of docs/speed.md, in two runs of under nine minutes each, from the repository's root:
#
#     bash benchmarks/gpu.sh step [LOG]          # ceilings, InfoNCE, the step, its memory, growth
#     JPEG=DIR bash benchmarks/gpu.sh fed [LOG]  # loading, the step fed from JPEG files, other libraries, growth
#
# JPEG: a folder of photographs of about 500 x 375 px; without it such files are made. WORKERS: loader processes, 16.
# BUDGET: seconds; what would begin after it is left out and said to be. Each part goes on where one before it failed.
set -uo pipefail
part=${1:?step or fed}
log=${2:-/dev/null}
export PYTHONPATH="$PWD/src:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
workers=${WORKERS:-16}
budget=${BUDGET:-510}
extra=${EXTRA:-}  # further options of pretrain_step.py and growth.py, to try this script where there is no GPU
began=$SECONDS

run() { # seconds that it may take, then the command
    local limit=$1 left=$((budget - (SECONDS - began)))
    shift
    if ((left < 15)); then
        echo "--- left out, the time is over: $*"
        return
    fi
    echo "--- $* (after $((SECONDS - began)) s)"
    timeout $((limit < left ? limit : left)) "$python" "$@" 2>&1 || echo "--- ended with $?"
}

shape="--device $device --batch ${BATCH:-256} --group ${GROUP:-32} $extra"
{
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader 2>/dev/null
    "$python" -c 'import platform, torch, torchvision; print(platform.python_version(), torch.__version__, torchvision.__version__)'
    if [ "$part" = step ]; then
        run 60 benchmarks/ceilings.py --device "$device"
        run 60 -m pytest -q -p no:cacheprovider tests/test_infonce_triton.py
        run 60 benchmarks/contrast.py --device "$device" --images "${BATCH:-256}" --group "${GROUP:-32}"
        run 60 benchmarks/pretrain_step.py $shape --variant bf16 --profile
        run 240 benchmarks/pretrain_step.py $shape --times 10 --rounds 1 --variants "plain float32" bf16 "bf16 compiled"
        run 60 benchmarks/pretrain_step.py $shape --times 10 --rounds 1 --variants bf16 --groups-at-a-time 1
        run 150 benchmarks/pretrain_step.py $shape --times 10 --rounds 1 --variants "bf16 graphs"
        run 120 benchmarks/growth.py $shape --tables groups windows levels
    else
        if [ -z "${JPEG:-}" ]; then
            JPEG=$(mktemp -d)
            "$python" benchmarks/make_jpegs.py "$JPEG" "${FILES:-512}"
        fi
        run 40 benchmarks/decoders.py "$JPEG" --rounds 2
        run 90 benchmarks/growth.py --device cpu --batch "${BATCH:-256}" --tables workers --jpeg "$JPEG" --seconds 6
        run 240 benchmarks/pretrain_step.py $shape --times 10 --rounds 1 --workers "$workers" --jpeg "$JPEG" \
            --seconds 12 --variants "plain float32" bf16 "bf16 compiled"
        run 120 benchmarks/libraries.py --device "$device" --batch "${BATCH:-256}" --workers "$workers" --rounds 1 \
            --seconds 8 --jpeg "$JPEG"
        run 120 benchmarks/growth.py $shape --tables batch size
    fi
    echo "--- $part took $((SECONDS - began)) s"
} 2>&1 | tee "$log"
