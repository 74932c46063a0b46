// The kernels that find the schedule.

#include <algorithm>

#include "../common/ragged.cuh"
#include "../common/reduce.cuh"
#include "../common/sums.cuh"
#include "schedule.cuh"

namespace dien_fast::cuda {
namespace {

// Numbers that travel to the device in a kernel's arguments. A captured graph keeps a copy of arguments, but
// only the address of host memory.
struct Integers {
    static constexpr int kCount = 256;
    int64_t values[kCount];
};

__global__ void upload_kernel(Integers from, int64_t* to, int count) {
    const int i = threadIdx.x;
    if (i < count) to[i] = from.values[i];
}

__global__ void lengths_kernel(Layout layout, const int64_t* step_start, Unsorted out) {
    const int64_t b = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (b >= layout.batch) return;
    int64_t start = b, length = 0;
    if (layout.lengths != nullptr) {
        start = b * layout.steps;
        length = clamped(layout.lengths[b], 0, layout.steps);
    } else if (layout.offsets != nullptr) {
        start = clamped(layout.offsets[b], 0, layout.rows);
        length = clamped(layout.offsets[b + 1], start, layout.rows) - start;
    } else {
        // History b has a step t where more than b histories have one; that number falls as t grows.
        int64_t end = layout.steps;
        while (length < end) {
            const int64_t t = (length + end) / 2;
            if (step_start[t + 1] - step_start[t] > b)
                length = t + 1;
            else
                end = t;
        }
    }
    int64_t x_start = start;
    if (layout.x_start != nullptr) {
        x_start = clamped(layout.x_start[b], 0, layout.x_rows);
        length = clamped(length, 0, layout.x_rows - x_start);
    }
    out.length[b] = length;
    out.row_start[b] = start;
    out.x_start[b] = x_start;
}

// A history's position is the number of those that are longer, or as long and earlier; a warp counts them.
__global__ void rank_kernel(Unsorted from, Histories to) {
    const int lane = threadIdx.x % kWarp;
    const int64_t b = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
    if (b >= to.batch) return;
    const int64_t length = from.length[b];
    int64_t rank = 0;
#pragma unroll 4
    for (int64_t i = lane; i < to.batch; i += kWarp)
        rank += from.length[i] > length || (from.length[i] == length && i < b);
    rank = warp_sum(rank);
    if (lane > 0) return;
    to.history[rank] = b;
    to.length[rank] = length;
    to.row_start[rank] = from.row_start[b];
    to.x_start[rank] = from.x_start[b];
}

__global__ void sums_kernel(Histories h) {
    SharedMemory shared;
    int64_t* partial = shared.take<int64_t>(kScanThreads);
    exclusive_sums(h.batch, [&](int64_t i) { return h.length[i]; }, h.steps_before, partial);
}

// The step and the position that have a place in the time-first order. When it is reached, histories at
// earlier positions have run `step`, others have not.
struct Place {
    int64_t step;
    int64_t position;

    __device__ int64_t steps_of(int64_t at, int64_t length) const {
        const int64_t done = step + (at < position ? 1 : 0);
        return done < length ? done : length;
    }
};

__device__ inline Place find_place(const Histories& h, int64_t place) {
    const int64_t total = h.steps_before[h.batch];
    if (place >= total) return {h.batch > 0 ? h.length[0] : 0, 0};
    // From step length[k] on, at most k histories are left. The first place of that step falls as k grows.
    auto first_place = [&](int64_t k) {
        return k < h.batch ? k * h.length[k] + total - h.steps_before[k] : 0;
    };
    int64_t low = 1, high = h.batch;
    while (low < high) {
        const int64_t k = (low + high) / 2;
        if (first_place(k) <= place)
            high = k;
        else
            low = k + 1;
    }
    const int64_t beyond = place - first_place(low);
    return {(low < h.batch ? h.length[low] : 0) + beyond / low, beyond % low};
}

__global__ void chunk_kernel(Histories h, int64_t first_place, int64_t end_place, Chunk out) {
    SharedMemory shared;
    int64_t* partial = shared.take<int64_t>(kScanThreads);
    Place* ends = shared.take<Place>(2);
    if (threadIdx.x < 2) ends[threadIdx.x] = find_place(h, threadIdx.x == 0 ? first_place : end_place);
    __syncthreads();
    const Place begin = ends[0], end = ends[1];
    for (int64_t i = threadIdx.x; i < h.batch; i += kScanThreads)
        out.begin[i] = begin.steps_of(i, h.length[i]);
    exclusive_sums(
        h.batch, [&](int64_t i) { return end.steps_of(i, h.length[i]) - begin.steps_of(i, h.length[i]); },
        out.slot, partial);
}

__global__ void rows_kernel(Histories h, Chunk chunk, SlotRows out) {
    const int64_t slot = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (slot >= chunk.slot[h.batch]) return;
    int64_t at = 0, end = h.batch;  // finds the last position whose slots begin at or before this one
    while (end - at > 1) {
        const int64_t middle = (at + end) / 2;
        if (chunk.slot[middle] <= slot)
            at = middle;
        else
            end = middle;
    }
    const int64_t t = chunk.begin[at] + slot - chunk.slot[at], step = step_row(h, t);
    if (out.x != nullptr) out.x[slot] = h.x_start[at] + step;
    if (out.out != nullptr) out.out[slot] = h.row_start[at] + step;
    if (out.before != nullptr)
        out.before[slot] = t > 0 ? h.row_start[at] + step_row(h, t - 1) : -1 - h.history[at];
}

}  // namespace

void Schedule::enqueue(const Layout& layout, Stream stream) const {
    for (int64_t t = 0; step_start != nullptr && t <= layout.steps; t += Integers::kCount) {
        Integers some{};
        const int count = int(std::min<int64_t>(layout.steps + 1 - t, Integers::kCount));
        std::copy_n(layout.step_start + t, count, some.values);
        launch(upload_kernel, dim3(1), Integers::kCount, 0, stream, some, step_start + t, count);
    }
    const int shared_bytes = kScanThreads * int(sizeof(int64_t));
    launch(lengths_kernel, blocks_for(layout.batch, kThreads), kThreads, 0, stream, layout,
           histories.step_start, unsorted);
    launch(rank_kernel, blocks_for(layout.batch, kThreads / kWarp), kThreads, 0, stream, unsorted, histories);
    launch(sums_kernel, dim3(1), kScanThreads, shared_bytes, stream, histories);
}

void enqueue_chunk(const Histories& h, int64_t begin, int64_t end, const Chunk& chunk, const SlotRows& rows,
                   Stream stream) {
    const int shared_bytes = kScanThreads * int(sizeof(int64_t)) + 2 * int(sizeof(Place));
    launch(chunk_kernel, dim3(1), kScanThreads, shared_bytes, stream, h, begin, end, chunk);
    if (end > begin && (rows.x != nullptr || rows.out != nullptr))
        launch(rows_kernel, blocks_for(end - begin, 256), 256, 0, stream, h, chunk, rows);
}

}  // namespace dien_fast::cuda
