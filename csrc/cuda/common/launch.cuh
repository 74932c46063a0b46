// How many blocks a launch takes.

#pragma once

#include <platform.h>

#include <cstdint>

namespace dien_fast::cuda {

constexpr int kThreads = 256;  // of a block, where a kernel has no reason for another number

// Blocks that handle `count` things, `each` at most per block.
inline dim3 blocks_for(int64_t count, int each) { return dim3(unsigned((count + each - 1) / each)); }

}  // namespace dien_fast::cuda
