// The interface of the CUDA kernels of the attention GRU: raw pointers to device memory, sizes and a stream.
// The equations, and the order of the gates in the weights, are in ../attention_gru.h.
//
// Numbers are stored as `Type`; arithmetic, attention and every state that a run hands on to another are
// `wide`: float, or double for double.

#pragma once

#include <cstdint>

#include "../../attention_gru.h"

namespace dien_fast::cuda {

enum class Type : int64_t { kFloat, kDouble, kHalf, kBFloat16 };

// Where the steps are. Exactly one of lengths, offsets and step_start is given. Their values are taken as
// they come, cut to what lies inside the arrays.
struct Layout {
    int64_t batch;           // B
    int64_t rows;            // of att, states and the gradients, those of padding included
    int64_t x_rows;          // of x
    int64_t steps;           // T of padded and packed rows
    const int64_t* lengths;  // [B] of padded rows, in device memory
    const int64_t* offsets;  // [B + 1] of ragged rows, in device memory
    const int64_t*
        step_start;          // [T + 1] of packed rows, in host memory: first row of each step, N at the end
    const int64_t* x_start;  // [B] in device memory: first row of x of each history; null: as of att
};

struct Call {
    Type type;
    Layout layout;
    Cell cell;
    int64_t input;        // I
    int64_t hidden;       // H
    const void* w;        // weight_ih [G H, I]
    const void* u;        // weight_hh [G H, H]
    const void* bias_ih;  // [G H] or null
    const void* bias_hh;  // [G H] or null
    const void* x;        // rows of I
    const void* att;      // wide, one a row, or null for gru
    const void* h0;       // wide [B, H], or null for 0
    // Memory that rows of one chunk may take; the rows run in as many chunks as that needs.
    int64_t chunk_bytes = int64_t(256) << 20;
};

struct Forward : Call {
    void* states;       // output, rows of H, or null if not wanted
    void* wide_states;  // output, the same in wide, or null if not wanted
    void* last;         // output [B, H]
};

struct Backward : Call {
    const void* states;   // wide, rows of H, from the forward run
    const void* dstates;  // rows of H, or null for 0
    const void* dlast;    // [B, H], or null for 0
    void* dx;             // output, rows of I, or null if not wanted
    void* datt;           // output, wide, one a row, or null if not wanted
    void* dh0;            // output, wide [B, H], or null if not wanted
    void* dw;             // outputs in the shapes of the weights; all four, or null if not wanted
    void* du;
    void* dbias_ih;
    void* dbias_hh;
};

// Bytes of device memory that a run needs beside its arguments, aligned to 256.
int64_t workspace_bytes(const Forward&);
int64_t workspace_bytes(const Backward&);

// Enqueue the kernels on a stream (cudaStream_t) of the current device; nothing waits for the device.
void run(const Forward&, void* workspace, void* stream);
void run(const Backward&, void* workspace, void* stream);

}  // namespace dien_fast::cuda
