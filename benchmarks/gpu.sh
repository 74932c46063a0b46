#!/bin/sh
# Builds, tests, sanitizes and times the CUDA kernels, on a machine with a GPU, nvcc, compute-sanitizer and a torch
# with CUDA; no network is needed. `benchmarks/gpu.sh` does all of it; `benchmarks/gpu.sh build|test|sanitize|check|time`
# one part, where check is test and sanitize at once. OUT is where logs and results go (build/gpu), PYTHON the
# interpreter.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu}
SECONDS_OF_TIMING=${SECONDS_OF_TIMING:-240}
TOOLS="memcheck racecheck synccheck"
mkdir -p "$OUT"
# The package is built in place, not installed, and a script's own folder is all that Python looks in.
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH

build() {
    # This machine's architecture alone; the two libraries side by side.
    TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$("$PYTHON" -c \
        'import torch; print("%d.%d" % torch.cuda.get_device_capability())')}
    export TORCH_CUDA_ARCH_LIST
    "$PYTHON" setup.py -q build_ext --inplace --build-temp build/temp-gpu >"$OUT/build.log" 2>&1 ||
        { tail -n 40 "$OUT/build.log"; return 1; }
    "$PYTHON" -c 'import dien_fast; print(dien_fast.backend())'
}

tests() {
    # With pytest-xdist, on several processes: most of a test's time is the reference's, on the host.
    workers=$("$PYTHON" -c 'import xdist' 2>/dev/null && echo "-n 8" || true)
    # shellcheck disable=SC2086
    "$PYTHON" -m pytest -q -p no:cacheprovider --tb=short $workers tests/cuda/test_cuda.py \
        tests/cuda/test_cuda_interest.py tests/nn/test_sessions.py 2>&1 | tee "$OUT/test.log" | tail -n 40
    tail -n 1 "$OUT/test.log" | grep -q passed && ! tail -n 1 "$OUT/test.log" | grep -Eq 'failed|error'
}

sanitize() {
    # One beside the other; PYTORCH_NO_CUDA_MEMORY_CACHING lets memcheck see the bounds of every tensor.
    for tool in $TOOLS; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 240 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$PYTHON" benchmarks/gpu.py sanitize >"$OUT/$tool.log" 2>&1 && echo passed >"$OUT/$tool.result" ||
            echo failed >"$OUT/$tool.result" &
    done
    wait
    for tool in $TOOLS; do
        # Some virtual machines hide from it what it needs; kernels can still be timed there.
        if grep -q "Device not supported" "$OUT/$tool.log"; then
            echo "NOT SANITIZED: compute-sanitizer says that it does not support this device"
            return 0
        fi
        if ! grep -q passed "$OUT/$tool.result"; then
            echo "compute-sanitizer $tool failed:"
            tail -n 40 "$OUT/$tool.log"
            return 1
        fi
        echo "compute-sanitizer $tool: $(tail -n 1 "$OUT/$tool.log")"
    done
}

check() {
    sanitize >"$OUT/sanitize.log" &
    sanitizers=$!
    tests
    wait "$sanitizers" || { cat "$OUT/sanitize.log"; return 1; }
    cat "$OUT/sanitize.log"
}

measure() {
    "$PYTHON" benchmarks/gpu.py kernels --output "$OUT/kernels.json"
    "$PYTHON" benchmarks/gpu.py time --output "$OUT/gpu.json" --seconds "$SECONDS_OF_TIMING"
}

case "${1:-all}" in
    build) build ;;
    test) tests ;;
    sanitize) sanitize ;;
    check) check ;;
    time) measure ;;
    all)
        build
        check
        measure
        ;;
    *)
        echo "usage: benchmarks/gpu.sh [build|test|sanitize|check|time]" >&2
        exit 2
        ;;
esac
