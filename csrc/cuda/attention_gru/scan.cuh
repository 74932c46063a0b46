// What the forward and the backward scan share: who owns what, how recurrent weights get to the threads, and
// the sums over the lanes of a warp.
//
// A block owns kRows histories, neighbours in the sorted order, for all their steps in the chunk. So no block
// waits for another.
//
// A warp computes 8 columns of the block's product for all its histories; each lane adds up only a share of
// the terms. So each weight is read from shared memory once and meets kRows numbers, which are in registers.
// Then the lanes exchange their partial sums, until each has the whole sums of what it owns: lane l owns
// column l % 8 of its warp, and of the histories [l / 8 * kOwn, (l / 8 + 1) * kOwn) with kOwn = kRows / 4.
// For these it computes the activations, without waiting at a barrier in between.

#pragma once

#include "../common/numbers.cuh"
#include "schedule.cuh"
#include "weights.cuh"

namespace dien_fast::cuda {

constexpr int kScanMaxThreads = 4 * kMaxColumns;

struct Owner {
    int warp, lane;
    int column;  // in the block of columns
    int group;   // of histories

    __device__ Owner()
        : warp(threadIdx.x / 32),
          lane(threadIdx.x % 32),
          column(warp * kWarpColumns + lane % kWarpColumns),
          group(lane / kWarpColumns) {}
};

// Adds the sums of two lanes, whose numbers differ in the bit `mask`. Each keeps one half of the sums: the
// lane with the bit set the second half. A sum has the same two terms whichever lane keeps it, so results do
// not depend on that.
template <int kCount, typename W>
__device__ inline void exchange(W* sums, int lane, int mask) {
    const bool second = (lane & mask) != 0;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
        const W given = second ? sums[i] : sums[i + kCount / 2];
        const W kept = second ? sums[i + kCount / 2] : sums[i];
        sums[i] = kept + shuffle_xor(given, mask);
    }
}

// Rows [first, first + count) of a block of columns of the weights, in shared memory.
template <typename W>
struct Stage {
    const W* rows;
    int first, count;
    bool last;  // whether these are the last rows of the block of columns
};

// Recurrent weights in shared memory. kResident: all of them for the whole run, where they fit and are one
// block of columns. Otherwise a ring of three stages, through which they are streamed again in every step.
template <typename W, bool kResident>
class PanelReader {
  public:
    __device__ PanelReader(SharedMemory& shared, const W* weights, const Panels& panels)
        : weights_(weights), panels_(panels) {
        if constexpr (kResident) {
            ring_ = shared.take<W>(panels.depth * panels.stride);
            copy(ring_, weights, panels.depth * panels.stride);
            copy_async_commit();
        } else {
            ring_ = shared.take<W>(kStages * panels.stage * panels.stride);
            for (int i = 0; i < kStages - 1; ++i) fetch();
        }
    }

    // The next rows; all threads call it. With streamed weights it waits at a barrier, and all copies have
    // arrived that the thread had started before its last call but one.
    __device__ Stage<W> next() {
        if constexpr (kResident) {
            return {ring_, 0, panels_.depth, true};
        } else {
            copy_async_wait<kStages - 2>();
            __syncthreads();
            fetch();
            const W* rows = ring_ + read_at_ * panels_.stage * panels_.stride;
            read_at_ = read_at_ + 1 == kStages ? 0 : read_at_ + 1;
            const int first = read_row_, left = panels_.depth - read_row_;
            read_row_ = left > panels_.stage ? read_row_ + panels_.stage : 0;
            return {rows, first, left < panels_.stage ? left : panels_.stage, read_row_ == 0};
        }
    }

    static int shared_bytes(const Panels& panels) {
        return (kResident ? panels.depth : kStages * panels.stage) * panels.stride * int(sizeof(W));
    }

  private:
    static constexpr int kStages = 3;

    __device__ void copy(W* to, const W* from, int count) {
        constexpr int kVector = 16 / int(sizeof(W));
        for (int i = threadIdx.x * kVector; i < count; i += blockDim.x * kVector)
            copy_async<16>(to + i, from + i);
    }

    // Starts to copy the next stage over the one that all threads have read.
    __device__ void fetch() {
        const int64_t row = int64_t(block_) * panels_.depth + fetch_row_;
        copy(ring_ + fetch_at_ * panels_.stage * panels_.stride, weights_ + row * panels_.stride,
             panels_.stage * panels_.stride);
        copy_async_commit();
        fetch_at_ = fetch_at_ + 1 == kStages ? 0 : fetch_at_ + 1;
        fetch_row_ += panels_.stage;
        if (fetch_row_ >= panels_.depth) {
            fetch_row_ = 0;
            block_ = block_ + 1 == panels_.blocks ? 0 : block_ + 1;
        }
    }

    const W* weights_;
    Panels panels_;
    W* ring_;
    int fetch_at_ = 0, fetch_row_ = 0, block_ = 0;
    int read_at_ = 0, read_row_ = 0;
};

// A history that a thread owns, and its steps in the chunk.
struct OwnHistory {
    int64_t history = 0;
    int64_t begin = 0;  // first step
    int steps = 0;      // a chunk's memory has room for less than an int counts
    int64_t slot = 0;
    int64_t row_start = 0;

    __device__ void load(const Histories& h, const Chunk& chunk, int64_t position) {
        if (position >= h.batch) return;
        history = h.history[position];
        begin = chunk.begin[position];
        slot = chunk.slot[position];
        steps = int(chunk.slot[position + 1] - slot);
        row_start = h.row_start[position];
    }
};

// The most steps in the chunk that a history of the block has. All are nearly as long, as histories are
// sorted.
template <int kRows>
__device__ int longest(const Histories& h, const Chunk& chunk) {
    int most = 0;
    for (int i = 0; i < kRows; ++i) {
        const int64_t position = int64_t(blockIdx.x) * kRows + i;
        if (position >= h.batch) break;
        const int steps = int(chunk.slot[position + 1] - chunk.slot[position]);
        most = steps > most ? steps : most;
    }
    return most;
}

// kRows for a batch: 4 while that gives a scheduler of the device four warps at most, and 8 beyond that.
// Fewer warps wait more than they work; with more, what counts is that a block of 8 takes fewer instructions
// a history.
inline int rows_of_block(int64_t batch, const Panels& panels, const Device& device) {
    return batch * panels.columns > 4 * kMaxColumns * int64_t(device.multiprocessors) ? 8 : 4;
}

}  // namespace dien_fast::cuda
