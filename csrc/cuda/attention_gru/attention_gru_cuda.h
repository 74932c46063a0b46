// The attention GRU on CUDA: the interface between the entry points and the launchers, in raw pointers to
// device memory, sizes and a stream. ../../attention_gru.h has the equations and the order of the gates in
// the weights.
//
// Numbers are stored as `Type`. "wide" is float, or double for double: the type of arithmetic, of attention,
// and of every state that a run hands on to another.
//
// The files, in the order of a run: attention_gru_cuda.cpp checks tensors; dispatch.cu chooses the type;
// forward.cuh and backward.cuh enqueue the kernels, which are weights.cuh (brings weights into the kernels'
// order), schedule.cu (which rows run when), products.cuh (matrix products of all rows at once),
// forward_scan.cuh and backward_scan.cuh (what goes from step to step). kernels_float.cu and its neighbours
// compile these for one type each.

#pragma once

#include <cstdint>

#include "../../attention_gru.h"

namespace dien_fast::cuda {

enum class Type : int64_t { kFloat, kDouble, kHalf, kBFloat16 };

// Where the steps are. Exactly one of lengths, offsets and step_start is given. Lengths and offsets are not
// checked on the host; the kernels clamp their values to what lies inside the arrays.
struct Layout {
    int64_t batch;           // B
    int64_t rows;            // of att, states and the gradients, padding included
    int64_t x_rows;          // of x
    int64_t steps;           // T of padded and packed rows
    const int64_t* lengths;  // [B] of padded rows, in device memory
    const int64_t* offsets;  // [B + 1] of ragged rows, in device memory
    // [T + 1] of packed rows, in host memory: the first row of each step, and N at the end.
    const int64_t* step_start;
    // [B] in device memory: first row of x of each history, or null where x has the rows of att.
    const int64_t* x_start;
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
    // Memory that the scratch of one chunk may take. The steps run in as many chunks as that makes necessary.
    int64_t chunk_bytes = int64_t(256) << 20;
};

struct Forward : Call {
    void* states;       // output, rows of H, or null if not wanted
    void* wide_states;  // output, the same in wide, of types of 16 bits, or null if not wanted
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
