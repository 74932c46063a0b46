#!/usr/bin/env bash
# Compiles the CPU kernels for aarch64 and runs the operators' tests on them, on an x86-64 machine:
#
#     sudo tests/support/on_aarch64.sh DIR [arguments of pytest]
#
# For Debian, of which it installs qemu-user and a cross compiler. It builds with the Python of .venv, or of PYTHON. DIR
# gets Debian's Python for arm64, torch and what the tests need from PyPI, and the package.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: on_aarch64.sh DIR [arguments of pytest]" >&2; exit 2; }
sources=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$sources/.venv/bin/python}
mkdir -p "$1"/{debian,root,packages,torch}
dir=$(cd "$1" && pwd)
shift
if [ ! -e "$dir/root/usr/bin/python3.11" ]; then
    dpkg --add-architecture arm64
    apt-get -qq update
    apt-get -qq install -y qemu-user-static g++-aarch64-linux-gnu
    names=(libc6 libstdc++6 libgcc-s1 libgomp1 zlib1g libssl3 libffi8 libbz2-1.0 liblzma5 libexpat1 libsqlite3-0 libuuid1)
    names+=(python3.11-minimal libpython3.11-minimal libpython3.11-stdlib python3.11)
    (cd "$dir/debian" && apt-get -qq download "${names[@]/%/:arm64}")
    for package in "$dir"/debian/*.deb; do dpkg -x "$package" "$dir/root"; done
fi
if [ ! -e "$dir/packages/torch" ]; then
    platforms=(--platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64)
    # Without dependencies: pip would take those of the machine that it runs on.
    names=(torch==2.10.0 numpy filelock typing_extensions sympy mpmath networkx jinja2 MarkupSafe fsspec setuptools)
    names+=(pytest pluggy iniconfig packaging pygments hypothesis sortedcontainers attrs threadpoolctl)
    "$python" -m pip install -q --target "$dir/packages" "${platforms[@]}" --only-binary=:all: --no-deps \
        --python-version 3.11 --implementation cp "${names[@]}"
    ln -sfn "$dir/packages/torch" "$dir/torch/torch"
fi
# setup.py, told that this is such a machine, and given the headers and libraries of its torch.
(cd "$sources" && CXX=aarch64-linux-gnu-g++ DIEN_FAST_CUDA=0 PYTHONPATH=$dir/torch "$python" -c '
import platform, runpy, sys
platform.machine = lambda: "aarch64"
sys.argv = ["setup.py", "-q", "build", "--build-lib", sys.argv[1], "--build-temp", sys.argv[1] + "/temp"]
runpy.run_path("setup.py")' "$dir/built" >/dev/null)
cd "$dir/built"
export PYTHONPATH=$dir/built:$dir/packages OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
files=$("$python" -c '
import sys
sys.path.insert(0, sys.argv[1] + "/support")
import run_sanitized
print(*(f"{sys.argv[1]}/{name}" for name in run_sanitized.FILES), sep="\n")' "$sources/tests")
mapfile -t files <<<"$files"
exec qemu-aarch64-static -L "$dir/root" "$dir/root/usr/bin/python3.11" -m pytest -q -p no:cacheprovider -m "not slow" \
    -k "not (opcheck or script or Backend or 257)" "$@" "${files[@]}"
