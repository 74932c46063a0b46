#!/usr/bin/env bash
# Builds GPGPU-Sim, which executes PTX on the host, and a CUDA toolkit of its generation for it:
#
#     tests/cuda_simulator/build.sh DIR [SOURCE]        then GPGPUSIM_ROOT=DIR make test-cuda-simulated
#
# SOURCE is a clone of github.com/accel-sim/gpgpu-sim_distribution that has the commit below, or a tar archive of it;
# without one it is cloned. gpgpu-sim.patch adds what the kernels need. CUDA_INSTALL_PATH names a CUDA 11 toolkit;
# without one, 11.8 is put together in DIR/toolkit from Debian's package (non-free) and NVIDIA's wheels. It takes g++,
# flex, bison, zlib's headers, git and pip; about 8 minutes on two cores.
set -euo pipefail
commit=667834cfe5214523edd7769aeab77f91b7137686
here=$(cd "$(dirname "$0")" && pwd)
if [ $# -lt 1 ] || [ $# -gt 2 ]; then echo "usage: build.sh DIR [SOURCE]" >&2; exit 2; fi
for tool in g++ flex bison git; do
    command -v "$tool" >/dev/null || { echo "build.sh: $tool was not found: apt-get install g++ flex bison zlib1g-dev git" >&2; exit 1; }
done
mkdir -p "$1"
root=$(cd "$1" && pwd)
source=${2:-https://github.com/accel-sim/gpgpu-sim_distribution}
[ ! -e "$source" ] || source=$(realpath "$source")

get_simulator() {
    if [ -f "$root/.patched" ]; then
        cmp -s "$here/gpgpu-sim.patch" "$root/.patched" && return 0
        echo "build.sh: $root was built with another gpgpu-sim.patch: remove it or name another folder" >&2
        exit 1
    fi
    if [ -f "$source" ]; then
        tar -xf "$source" -C "$root" --strip-components=1
    else
        rm -rf "$root/.clone"
        git clone -q "$source" "$root/.clone"
        git -C "$root/.clone" archive "$commit" | tar -x -C "$root"
        rm -rf "$root/.clone"
    fi
    # Its build names the commit of the checkout that it is in. The version check ends at CUDA 11.1. The model of
    # electrical power is not needed, and takes minutes.
    rm -rf "$root/src/accelwattch"
    sed -i 's/-gt 11100/-gt 11900/' "$root/setup_environment"
    git -C "$root" init -q
    git -C "$root" apply "$here/gpgpu-sim.patch"
    git -C "$root" -c user.name=build -c user.email=build@localhost commit -q --allow-empty -m "$commit with gpgpu-sim.patch"
    cp "$here/gpgpu-sim.patch" "$root/.patched"
}

# nvcc, cicc, ptxas and cuobjdump of Debian's package, which is not installed; headers and libcudart of NVIDIA's wheels.
get_toolkit() {
    local apt=$root/.fetched/apt toolkit=$root/toolkit options programs program wheel
    mkdir -p "$apt"/{parts,lists/partial,archives/partial} "$root/.fetched/wheels" "$toolkit"/{bin,include,lib64,nvvm/bin,nvvm/libdevice}
    sed 's/^Components: main.*/Components: main contrib non-free/' /etc/apt/sources.list.d/debian.sources >"$apt/parts/nonfree.sources"
    options=(-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$apt/parts" -o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt")
    apt-get -qq "${options[@]}" update
    (cd "$apt" && apt-get -qq "${options[@]}" download nvidia-cuda-toolkit=11.8.89~*)
    dpkg -x "$apt"/nvidia-cuda-toolkit_*.deb "$root/.fetched/debian"
    python3 -m pip download -q --disable-pip-version-check --no-deps -d "$root/.fetched/wheels" \
        nvidia-cuda-nvcc-cu11==11.8.89 nvidia-cuda-runtime-cu11==11.8.89
    for wheel in "$root"/.fetched/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$root/.fetched/wheels"; done
    programs=$root/.fetched/debian/usr/lib/nvidia-cuda-toolkit/bin
    for program in nvcc cudafe++ cuobjdump ptxas fatbinary nvlink nvdisasm bin2c; do
        if [ -e "$programs/$program" ]; then cp -L "$programs/$program" "$toolkit/bin/"
        else cp -L "$root/.fetched/debian/usr/bin/$program" "$toolkit/bin/"; fi
    done
    cp -r "$programs/crt" "$toolkit/bin/"
    cp "$programs/cicc" "$toolkit/nvvm/bin/"
    wheel=$root/.fetched/wheels/nvidia
    cp "$wheel/cuda_nvcc/nvvm/libdevice/libdevice.10.bc" "$toolkit/nvvm/libdevice/"
    cp -rf "$wheel/cuda_runtime/include/." "$wheel/cuda_nvcc/include/." "$toolkit/include/"
    cp "$wheel/cuda_runtime/lib/libcudart.so.11.0" "$toolkit/lib64/"
    ln -sf libcudart.so.11.0 "$toolkit/lib64/libcudart.so"
    chmod +x "$toolkit"/bin/* "$toolkit"/nvvm/bin/* 2>/dev/null || true
    cat >"$toolkit/bin/nvcc.profile" <<'PROFILE'
TOP                = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
LD_LIBRARY_PATH   += $(TOP)/lib64:
PATH              += $(TOP)/nvvm/bin:$(_HERE_):
INCLUDES          +=  "-I$(TOP)/include" $(_SPACE_)
LIBRARIES         =+ $(_SPACE_) "-L$(TOP)/lib64" $(_SPACE_)
PROFILE
    # No wheel has the profiler's header; these declarations are all that the simulator wants of it.
    cat >"$toolkit/include/cudaProfiler.h" <<'PROFILER'
#pragma once
#include <cuda.h>
typedef enum CUoutput_mode_enum { CU_OUT_KEY_VALUE_PAIR = 0, CU_OUT_CSV = 1 } CUoutput_mode;
extern "C" CUresult cuProfilerInitialize(const char* configuration, const char* output, CUoutput_mode mode);
extern "C" CUresult cuProfilerStart(void);
extern "C" CUresult cuProfilerStop(void);
PROFILER
    rm -rf "$root/.fetched"
}

get_simulator
if [ -z "${CUDA_INSTALL_PATH:-}" ]; then
    CUDA_INSTALL_PATH=$root/toolkit
    [ -f "$root/toolkit/bin/nvcc.profile" ] || get_toolkit
fi
# Only a second build wants the dependencies that makedepend finds.
mkdir -p "$root/tools"
printf '#!/bin/sh\nexit 0\n' >"$root/tools/makedepend"
chmod +x "$root/tools/makedepend"
cat >"$root/env.partial" <<ENVIRONMENT
export CUDA_INSTALL_PATH=$CUDA_INSTALL_PATH PTXAS_CUDA_INSTALL_PATH=$CUDA_INSTALL_PATH
export PATH=$root/tools:$CUDA_INSTALL_PATH/bin:\$PATH
source $root/setup_environment >/dev/null
ENVIRONMENT
set +eu  # setup_environment tests variables that are unset
source "$root/env.partial"
set -eu
make -j"$(nproc)" -C "$root" >"$root/build.log" 2>&1 || { tail -n 20 "$root/build.log" >&2; exit 1; }
mv "$root/env.partial" "$root/env.sh"
echo "built $(find "$root/lib" -name 'libcudart.so.11.0')"
