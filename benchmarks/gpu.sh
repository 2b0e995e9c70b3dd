#!/usr/bin/env bash
# Every GPU figure of docs/speed.md, in two runs of less than nine minutes each, from the repository's root:
#
#     bash benchmarks/gpu.sh step [LOG]          # the step and its memory, ceilings, InfoNCE, growth, compiled
#     JPEG=DIR bash benchmarks/gpu.sh fed [LOG]  # the step fed from JPEG files, other libraries, loading, decoders
#
# What matters most comes first. JPEG: a folder of photographs of about 500 x 375 px; without it such files are made.
# WORKERS: loader processes, 16. BUDGET: seconds; parts that would start after it are skipped, with a line for each. A
# part that fails does not stop the others. What is compiled is kept in CACHE, so that the second run finds it.
set -uo pipefail
part=${1:?step or fed}
log=${2:-/dev/null}
export PYTHONPATH="$PWD/src:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
cache=${CACHE:-${TMPDIR:-/tmp}/resim-gpu}
export TORCHINDUCTOR_CACHE_DIR="$cache/inductor" TRITON_CACHE_DIR="$cache/triton" XDG_CACHE_HOME="$cache"
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1  # of plugins that happen to be there
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
workers=${WORKERS:-16}
budget=${BUDGET:-520}
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
    timeout -k 5 $((limit < left ? limit : left)) "$python" "$@" 2>&1 || echo "--- ended with $?"
}

batch=${BATCH:-256} group=${GROUP:-32}
shape="--device $device --batch $batch --group $group $extra"
timed="$shape --times 10 --rounds 1"
{
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader 2>/dev/null
    "$python" -c 'import platform, torch, torchvision; print(platform.python_version(), torch.__version__, torchvision.__version__)'
    echo "$(nproc --all) cores, $(df -h --output=size /dev/shm 2>/dev/null | tail -1 | tr -d ' ') of shared memory, $(command -v ${CC:-cc} || echo no C compiler)"
    if [ "$part" = step ]; then
        run 110 benchmarks/pretrain_step.py $timed --variants "plain float32" bf16
        run 60 benchmarks/ceilings.py --device "$device"
        run 60 benchmarks/contrast.py --device "$device" --images "$batch" --group "$group"
        run 50 benchmarks/pretrain_step.py $timed --variants bf16 --groups-at-a-time 1
        run 170 benchmarks/pretrain_step.py $timed --variants "bf16 compiled"
        run 60 -m pytest -q -p no:cacheprovider tests/kernels/test_infonce.py -k "not by_the_interpreter"
        run 100 benchmarks/growth.py $shape --tables batch groups size levels windows
        run 50 benchmarks/pretrain_step.py $shape --variant bf16 --profile
        run 50 benchmarks/pretrain_step.py $timed --variants "bf16 tuned"
        run 150 benchmarks/pretrain_step.py $timed --variants "bf16 graphs"
    else
        if [ -z "${JPEG:-}" ]; then
            JPEG=$(mktemp -d)
            "$python" benchmarks/make_jpegs.py "$JPEG" "${FILES:-512}"
        fi
        fed="$timed --workers $workers --jpeg $JPEG --seconds 12"
        run 60 benchmarks/pretrain_step.py $fed --variants bf16
        run 130 benchmarks/pretrain_step.py $fed --variants "bf16 compiled"
        run 110 benchmarks/pretrain_step.py $fed --variants "plain float32"
        run 120 benchmarks/libraries.py --device "$device" --batch "$batch" --workers "$workers" --rounds 1 \
            --seconds 8 --jpeg "$JPEG" ${LIBRARIES:-}
        run 90 benchmarks/growth.py --device cpu --batch "$batch" --tables workers --jpeg "$JPEG" --seconds 4
        run 40 benchmarks/decoders.py "$JPEG" --rounds 2
    fi
    echo "--- $part took $((SECONDS - began)) s"
} 2>&1 | tee "$log"
