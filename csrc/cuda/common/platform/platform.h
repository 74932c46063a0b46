// All that kernels and launchers use of CUDA beside the language. tests/cuda/emulator/platform/platform.h
// gives the same names to a host compiler; the include path chooses between the two files.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace dien_fast::cuda {

using Stream = cudaStream_t;
using Half = __half;
using BFloat16 = __nv_bfloat16;

inline void check(cudaError_t error) {
    if (error != cudaSuccess)
        throw std::runtime_error(std::string("dien-fast's CUDA kernels: ") + cudaGetErrorString(error));
}

__device__ inline float widened(Half value) { return __half2float(value); }
__device__ inline float widened(BFloat16 value) { return __bfloat162float(value); }
__device__ inline float widened(float value) { return value; }
__device__ inline double widened(double value) { return value; }
__device__ inline void store(Half& to, float value) { to = __float2half_rn(value); }
__device__ inline void store(BFloat16& to, float value) { to = __float2bfloat16_rn(value); }
__device__ inline void store(float& to, float value) { to = value; }
__device__ inline void store(double& to, double value) { to = value; }

// 1 / (1 + e^-v) within two units in the last place of 1, without a branch. expf and a division take four
// times the instructions, for digits of small gates that the sum with the state loses.
__device__ inline float sigmoid(float v) {
    float power, result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v * -1.44269504f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1 + power));
    return result;
}

// Hands out the dynamic shared memory of a block, piece by piece, each aligned to 16 bytes.
class SharedMemory {
  public:
    template <typename T>
    __device__ T* take(int count) {
        extern __shared__ __align__(16) unsigned char shared_bytes[];
        T* piece = reinterpret_cast<T*>(shared_bytes + used_);
        used_ += (count * int(sizeof(T)) + 15) / 16 * 16;
        return piece;
    }

  private:
    int used_ = 0;
};

// Starts to copy kBytes (4, 8 or 16) from global to shared memory. The thread sees them after it has waited
// for the group that the copy was committed in; other threads see them after a barrier that follows that
// wait.
template <int kBytes>
__device__ inline void copy_async(void* to, const void* from) {
    const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
    if constexpr (kBytes == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(from), "n"(kBytes)
                     : "memory");
}
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all but the last kPending of the committed groups have arrived.
template <int kPending>
__device__ inline void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Returns the value that lane `lane ^ mask` of the warp passes. All 32 lanes must call it.
template <typename T>
__device__ inline T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

struct Device {
    int multiprocessors;
    int shared_bytes;  // that a block may have
};

inline Device current_device() {
    int device = 0;
    Device d{};
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&d.multiprocessors, cudaDevAttrMultiProcessorCount, device));
    check(cudaDeviceGetAttribute(&d.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return d;
}

template <typename... Parameters>
void launch(void (*kernel)(Parameters...), dim3 blocks, int threads, int shared_bytes, Stream stream,
            Parameters... arguments) {
    if (shared_bytes > 48 * 1024)
        check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                   cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    kernel<<<blocks, threads, shared_bytes, stream>>>(arguments...);
    check(cudaGetLastError());
}

}  // namespace dien_fast::cuda
