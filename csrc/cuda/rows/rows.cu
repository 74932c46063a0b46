// The kernels of the operators on ragged rows. Memory bounds all of them.

#include <algorithm>

#include "../common/launch.cuh"
#include "../common/ragged.cuh"
#include "../common/reduce.cuh"
#include "rows_cuda.h"

namespace dien_fast::cuda {
namespace {

constexpr int kWarps = kThreads / kWarp;

// A block sums 32 columns of a history: each warp every eighth row, then the first warp adds up the eight
// sums, in the order of the warps.
template <typename T>
__global__ void weighted_sum_kernel(WeightedSum<T> p) {
    SharedMemory shared;
    T* sums = shared.take<T>(kThreads);
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const RowRange rows = history_rows(p.rows, blockIdx.x);
    const int64_t column = int64_t(blockIdx.y) * kWarp + lane;
    T sum = 0;
    if (column < p.depth)
        for (int64_t row = rows.begin + warp; row < rows.end; row += kWarps)
            sum += p.weights[row] * p.values[row * p.depth + column];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp > 0 || column >= p.depth) return;
    for (int i = 1; i < kWarps; ++i) sum += sums[i * kWarp + lane];
    p.sums[int64_t(blockIdx.x) * p.depth + column] = sum;
}

// A warp takes a row: its columns times the weight, and the product of values and gradient. The blocks of a
// history (blockIdx.y) take turns.
template <typename T>
__global__ void weighted_sum_backward_kernel(WeightedSumBackward<T> p) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const RowRange rows = history_rows(p.rows, blockIdx.x);
    const T* dsum = p.dsums + int64_t(blockIdx.x) * p.depth;
    const int64_t step = int64_t(gridDim.y) * kWarps;
    for (int64_t row = rows.begin + int64_t(blockIdx.y) * kWarps + warp; row < rows.end; row += step) {
        const T weight = p.weights[row];
        T product = 0;
        for (int64_t column = lane; column < p.depth; column += kWarp) {
            const T d = dsum[column];
            p.dvalues[row * p.depth + column] = weight * d;
            product += p.values[row * p.depth + column] * d;
        }
        product = warp_sum(product);
        if (lane == 0) p.dweights[row] = product;
    }
}

// Threads take turns with the pieces of the padded array. A row has `pieces` of type U.
template <typename U>
__global__ void pad_rows_kernel(PadRows p, int64_t pieces) {
    const U* from = static_cast<const U*>(p.values);
    U* to = static_cast<U*>(p.padded);
    const int64_t history_pieces = p.steps * pieces, count = p.rows.size * history_pieces;
    const int64_t step = int64_t(gridDim.x) * blockDim.x;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        const int64_t b = i / history_pieces, at = i - b * history_pieces;
        const RowRange rows = history_rows(p.rows, b);
        U piece{};
        if (at < rows.size() * pieces) piece = from[rows.begin * pieces + at];
        to[i] = piece;
    }
}

template <typename T>
void enqueue(const WeightedSum<T>& p, Stream stream) {
    if (p.rows.size == 0 || p.depth == 0) return;
    const dim3 blocks(unsigned(p.rows.size), blocks_for(p.depth, kWarp).x);
    launch(weighted_sum_kernel<T>, blocks, kThreads, kThreads * int(sizeof(T)), stream, p);
}

template <typename T>
void enqueue(const WeightedSumBackward<T>& p, Stream stream) {
    if (p.rows.size == 0 || p.rows.rows == 0) return;
    // Several blocks for a history where histories are few and long.
    constexpr int64_t kEnoughBlocks = 4096;
    const int64_t mean = p.rows.rows / p.rows.size;
    const int64_t splits =
        std::clamp<int64_t>(std::min(kEnoughBlocks / p.rows.size, mean / (4 * kWarps)), 1, 1024);
    launch(weighted_sum_backward_kernel<T>, dim3(unsigned(p.rows.size), unsigned(splits)), kThreads, 0,
           stream, p);
}

template <typename U>
bool try_pad(const PadRows& p, Stream stream) {
    const auto address = reinterpret_cast<uintptr_t>(p.values) | reinterpret_cast<uintptr_t>(p.padded);
    if ((address | uint64_t(p.row_bytes)) % sizeof(U) != 0) return false;
    const int64_t pieces = p.row_bytes / int64_t(sizeof(U)), count = p.rows.size * p.steps * pieces;
    const int64_t blocks = std::min<int64_t>((count + kThreads - 1) / kThreads, 65535);
    launch(pad_rows_kernel<U>, dim3(unsigned(blocks)), kThreads, 0, stream, p, pieces);
    return true;
}

}  // namespace

void run(const WeightedSum<float>& p, void* stream) { enqueue(p, static_cast<Stream>(stream)); }
void run(const WeightedSum<double>& p, void* stream) { enqueue(p, static_cast<Stream>(stream)); }
void run(const WeightedSumBackward<float>& p, void* stream) { enqueue(p, static_cast<Stream>(stream)); }
void run(const WeightedSumBackward<double>& p, void* stream) { enqueue(p, static_cast<Stream>(stream)); }

void run(const PadRows& p, void* stream_) {
    const auto stream = static_cast<Stream>(stream_);
    if (p.rows.size * p.steps * p.row_bytes == 0) return;
    // The widest pieces that addresses and rows are whole multiples of.
    try_pad<Vector<uint32_t, 4>>(p, stream) || try_pad<uint64_t>(p, stream) || try_pad<uint32_t>(p, stream) ||
        try_pad<uint16_t>(p, stream) || try_pad<uint8_t>(p, stream);
}

}  // namespace dien_fast::cuda
