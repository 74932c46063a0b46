// Which rows run when, found on the device so that lengths never travel to the host.
//
// Histories are sorted by length, longest first. Numbering their steps time first, as a packed sequence does,
// gives every step of every history a place below N; a chunk is the steps with places [begin, end). So the
// number of chunks depends on N alone, which the host knows, and every chunk keeps all histories that are
// long enough busy at once. The steps of a chunk have rows of scratch ("slots"), those of a history side by
// side.

#pragma once

#include <arena.h>
#include <platform.h>

#include "attention_gru_cuda.h"

namespace dien_fast::cuda {

// By position in the sorted order, [B] each.
struct Histories {
    int64_t batch;
    int64_t* history;
    int64_t* length;
    int64_t* row_start;
    int64_t* x_start;
    int64_t* steps_before;      // [B + 1] sum of the lengths at earlier positions
    const int64_t* step_start;  // [T + 1] of packed rows, else null
};

// The part of each history that a chunk runs.
struct Chunk {
    int64_t* begin;  // [B] first step
    int64_t* slot;   // [B + 1] first slot of each history, and their number
};

__device__ inline int64_t step_row(const Histories& h, int64_t t) {
    return h.step_start == nullptr ? t : h.step_start[t];
}

struct Unsorted {
    int64_t* length;
    int64_t* row_start;
    int64_t* x_start;
};

// The rows behind each slot of a chunk; null where not wanted.
struct SlotRows {
    int64_t* x;       // of x
    int64_t* out;     // of att, states and the gradients
    int64_t* before;  // of states: the state before the step; -1 - b: that is h0[b]
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

// Enqueues what finds the steps with places [begin, end), and the rows behind their slots.
void enqueue_chunk(const Histories& h, int64_t begin, int64_t end, const Chunk& chunk, const SlotRows& rows,
                   Stream stream);

inline dim3 blocks_for(int64_t count, int each) { return dim3(unsigned((count + each - 1) / each)); }

}  // namespace dien_fast::cuda
