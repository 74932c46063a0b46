// Which rows run when. Found on the device, so that lengths never travel to the host.
//
// Histories are sorted by length, longest first; a history's position is its place in that order. Numbering
// all steps time first, as a packed sequence does, gives each step of each history a place below N. A chunk
// is the steps with places [begin, end). So the number of chunks depends on N alone, which the host knows,
// and each chunk runs all histories at once that are long enough. The steps of a chunk have rows of scratch,
// called slots; those of one history are neighbours.

#pragma once

#include <arena.h>
#include <platform.h>

#include "../common/launch.cuh"
#include "attention_gru_cuda.h"

namespace dien_fast::cuda {

// The histories by position, [B] each.
struct Histories {
    int64_t batch;
    int64_t* history;
    int64_t* length;
    int64_t* row_start;
    int64_t* x_start;
    int64_t* steps_before;      // [B + 1] sum of the lengths at earlier positions; the last is N
    const int64_t* step_start;  // [T + 1] of packed rows, else null
};

// The part of each history that a chunk runs.
struct Chunk {
    int64_t* begin;  // [B] first step
    int64_t* slot;   // [B + 1] first slot of each history, and their number
};

// The row of step t, counted from the history's row_start.
__device__ inline int64_t step_row(const Histories& h, int64_t t) {
    return h.step_start == nullptr ? t : h.step_start[t];
}

// The same in the caller's order, [B] each.
struct Unsorted {
    int64_t* length;
    int64_t* row_start;
    int64_t* x_start;
};

// The rows that the slots of a chunk stand for; null where not wanted.
struct SlotRows {
    int64_t* x;       // of x
    int64_t* out;     // of att, states and the gradients
    int64_t* before;  // of states, for the state before the step; -1 - b stands for h0[b]
};

// The schedule of a call, in the workspace.
struct Schedule {
    Histories histories{};
    Unsorted unsorted{};
    int64_t* step_start = nullptr;

    Schedule(const Layout& layout, Arena& arena) {
        const int64_t batch = layout.batch;
        histories.batch = batch;
        histories.history = arena.take<int64_t>(batch);
        histories.length = arena.take<int64_t>(batch);
        histories.row_start = arena.take<int64_t>(batch);
        histories.x_start = arena.take<int64_t>(batch);
        histories.steps_before = arena.take<int64_t>(batch + 1);
        unsorted.length = arena.take<int64_t>(batch);
        unsorted.row_start = arena.take<int64_t>(batch);
        unsorted.x_start = arena.take<int64_t>(batch);
        if (layout.step_start != nullptr) step_start = arena.take<int64_t>(layout.steps + 1);
        histories.step_start = step_start;
    }

    void enqueue(const Layout& layout, Stream stream) const;
};

inline Chunk take_chunk(int64_t batch, Arena& arena) {
    return {arena.take<int64_t>(batch), arena.take<int64_t>(batch + 1)};
}

// Enqueues kernels that select the steps with places [begin, end) and map their slots to rows.
void enqueue_chunk(const Histories& h, int64_t begin, int64_t end, const Chunk& chunk, const SlotRows& rows,
                   Stream stream);

// Zeroes the padding of an array with `width` numbers for each step of padded rows. Launched with a block a
// row.
template <typename T>
__global__ void zero_padding_kernel(Layout layout, int64_t width, T* rows) {
    const int64_t row = blockIdx.x, b = row / layout.steps;
    if (row - b * layout.steps < layout.lengths[b]) return;
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) store(rows[row * width + i], 0);
}

}  // namespace dien_fast::cuda
