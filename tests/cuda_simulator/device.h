// The simulated device: what the launchers are told of it, and replies to the caller.

#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace device {

// From these the launchers choose among the kernels, and into how many parts they cut sums.
struct Numbers {
    int multiprocessors = 0, shared_bytes = 0;
};
Numbers& numbers();

void check(cudaError_t error);

// Writes to a file descriptor.
void write(int to, const void* bytes, size_t count);

}  // namespace device
