// The names of csrc/cuda/common/platform/platform.h for a host compiler.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "../emulator.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __syncthreads() ::emulator::barrier(__LINE__)

namespace dien_fast::cuda {

using Stream = void*;
using Half = _Float16;

struct BFloat16 {
    uint16_t bits;
};

inline float widened(Half value) { return static_cast<float>(value); }
inline float widened(BFloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    return wide;
}
inline float widened(float value) { return value; }
inline double widened(double value) { return value; }
inline void store(Half& to, float value) { to = static_cast<Half>(value); }
inline void store(BFloat16& to, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    to.bits = value != value ? 0x7fff : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void store(float& to, float value) { to = value; }
inline void store(double& to, double value) { to = value; }

inline float sigmoid(float v) { return 1 / (1 + expf(-v)); }

class SharedMemory {
  public:
    template <typename T>
    T* take(int count) {
        return static_cast<T*>(emulator::shared_piece(taken_++, count * int(sizeof(T))));
    }

  private:
    int taken_ = 0;
};

template <int kBytes>
void copy_async(void* to, const void* from) {
    static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
    emulator::copy_async(to, from, kBytes);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int kPending>
void copy_async_wait() {
    emulator::copy_async_wait(kPending);
}

template <typename T>
T shuffle_xor(T value, int mask, int line = __builtin_LINE()) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(value));
    bits = emulator::shuffle_xor(bits, mask, line);
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

struct Device {
    int multiprocessors;
    int shared_bytes;
};

inline Device current_device() {
    return {emulator::settings().multiprocessors, emulator::settings().shared_bytes};
}

template <typename... Parameters>
void launch(void (*kernel)(Parameters...), dim3 blocks, int threads, int shared_bytes, Stream,
            Parameters... arguments) {
    emulator::run(blocks, threads, shared_bytes, [&] { kernel(arguments...); });
}

}  // namespace dien_fast::cuda
