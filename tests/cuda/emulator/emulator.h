// Runs CUDA kernels on the host: every thread of a block is a fiber, one of which runs until it waits.
//
// What a kernel must not rely on is made visible: memory that nobody wrote is NaN, between the pieces of
// shared memory and of the workspace are guard zones, asynchronous copies arrive when they are waited for and
// not before, warps run ahead of one another in a chosen order, and what hardware leaves undefined (a barrier
// or shuffle that not all threads reach, misaligned copies) raises. Memory ordering, registers and speed are
// not modelled.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    constexpr dim3() = default;
    constexpr explicit dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Set before a fiber runs.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

enum class Order { kForward, kReverse, kRandom };

struct Settings {
    Order order = Order::kForward;
    unsigned seed = 0;
    int multiprocessors = 4;
    int shared_bytes = 227 * 1024;
    int64_t chunk_bytes = int64_t(1) << 40;  // at most; for operators, whose callers do not choose it
};
Settings& settings();

constexpr unsigned char kPoison = 0xff;  // NaN in every floating-point format

[[noreturn]] void fail(const std::string& what);

// Memory that must stay poisoned while kernels run.
void guard(char* memory, size_t bytes);
void check_guards();  // and forget them

void run(dim3 blocks, int threads, int shared_bytes, const std::function<void()>& kernel);

void barrier(int line);
void* shared_piece(int number, int bytes);
uint64_t shuffle_xor(uint64_t value, int mask, int line);
void copy_async(void* to, const void* from, int bytes);
void copy_async_commit();
void copy_async_wait(int pending);

}  // namespace emulator
