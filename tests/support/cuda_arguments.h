// The arguments of the launchers of csrc/cuda/attention_gru by name, as tests/support/cuda_launchers.py
// passes them. `Arguments` is a class with integer(name), and address(name), which is null where nothing was
// given.

#pragma once

#include "../../csrc/cuda/attention_gru/attention_gru_cuda.h"

namespace dien_fast::cuda {

template <typename Arguments>
void fill(Call& call, const Arguments& a) {
    const auto integers = [&](const char* name) { return static_cast<const int64_t*>(a.address(name)); };
    call.type = Type(a.integer("type"));
    call.cell = Cell(a.integer("cell"));
    Layout& layout = call.layout;
    layout.batch = a.integer("batch");
    layout.rows = a.integer("rows");
    layout.x_rows = a.integer("x_rows");
    layout.steps = a.integer("steps");
    layout.lengths = integers("lengths");
    layout.offsets = integers("offsets");
    layout.step_start = integers("step_start");
    layout.x_start = integers("x_start");
    call.input = a.integer("input");
    call.hidden = a.integer("hidden");
    call.w = a.address("weight_ih");
    call.u = a.address("weight_hh");
    call.bias_ih = a.address("bias_ih");
    call.bias_hh = a.address("bias_hh");
    call.x = a.address("x");
    call.att = a.address("att");
    call.h0 = a.address("h0");
    call.chunk_bytes = a.integer("chunk_bytes");
}

template <typename Arguments>
Forward forward_of(const Arguments& a) {
    Forward f{};
    fill(f, a);
    f.states = a.address("states");
    f.wide_states = a.address("wide_states");
    f.last = a.address("last");
    return f;
}

template <typename Arguments>
Backward backward_of(const Arguments& a) {
    Backward b{};
    fill(b, a);
    b.states = a.address("states");
    b.dstates = a.address("dstates");
    b.dlast = a.address("dlast");
    b.dx = a.address("dx");
    b.datt = a.address("datt");
    b.dh0 = a.address("dh0");
    b.dw = a.address("dweight_ih");
    b.du = a.address("dweight_hh");
    b.dbias_ih = a.address("dbias_ih");
    b.dbias_hh = a.address("dbias_hh");
    return b;
}

}  // namespace dien_fast::cuda
