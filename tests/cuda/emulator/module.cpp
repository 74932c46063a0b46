// The launchers of csrc/cuda for Python. Memory is named by its address; the caller guards it.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../../../csrc/cuda/attention_gru/attention_gru_cuda.h"
#include "emulator.h"

namespace py = pybind11;
using namespace dien_fast::cuda;

namespace {

template <typename T>
T* address(const py::dict& arguments, const char* name) {
    if (!arguments.contains(name) || arguments[name].is_none()) return nullptr;
    return reinterpret_cast<T*>(arguments[name].cast<uintptr_t>());
}

void fill(Call& call, const py::dict& a) {
    call.type = Type(a["type"].cast<int64_t>());
    call.cell = dien_fast::Cell(a["cell"].cast<int64_t>());
    Layout& layout = call.layout;
    layout.batch = a["batch"].cast<int64_t>();
    layout.rows = a["rows"].cast<int64_t>();
    layout.x_rows = a["x_rows"].cast<int64_t>();
    layout.steps = a["steps"].cast<int64_t>();
    layout.lengths = address<int64_t>(a, "lengths");
    layout.offsets = address<int64_t>(a, "offsets");
    layout.step_start = address<int64_t>(a, "step_start");
    layout.x_start = address<int64_t>(a, "x_start");
    call.input = a["input"].cast<int64_t>();
    call.hidden = a["hidden"].cast<int64_t>();
    call.w = address<void>(a, "weight_ih");
    call.u = address<void>(a, "weight_hh");
    call.bias_ih = address<void>(a, "bias_ih");
    call.bias_hh = address<void>(a, "bias_hh");
    call.x = address<void>(a, "x");
    call.att = address<void>(a, "att");
    call.h0 = address<void>(a, "h0");
    if (a.contains("chunk_bytes")) call.chunk_bytes = a["chunk_bytes"].cast<int64_t>();
}

Forward forward(const py::dict& a) {
    Forward f{};
    fill(f, a);
    f.states = address<void>(a, "states");
    f.wide_states = address<void>(a, "wide_states");
    f.last = address<void>(a, "last");
    return f;
}

Backward backward(const py::dict& a) {
    Backward b{};
    fill(b, a);
    b.states = address<void>(a, "states");
    b.dstates = address<void>(a, "dstates");
    b.dlast = address<void>(a, "dlast");
    b.dx = address<void>(a, "dx");
    b.datt = address<void>(a, "datt");
    b.dh0 = address<void>(a, "dh0");
    b.dw = address<void>(a, "dweight_ih");
    b.du = address<void>(a, "dweight_hh");
    b.dbias_ih = address<void>(a, "dbias_ih");
    b.dbias_hh = address<void>(a, "dbias_hh");
    return b;
}

template <typename Run>
void run_checked(const Run& call, uintptr_t workspace) {
    run(call, reinterpret_cast<void*>(workspace), nullptr);
    emulator::check_guards();
}

}  // namespace

PYBIND11_MODULE(dien_fast_cuda_emulated, m) {
    m.def("configure", [](const std::string& order, unsigned seed, int multiprocessors, int shared_bytes) {
        using emulator::Order;
        emulator::settings() = {order == "forward"   ? Order::kForward
                                : order == "reverse" ? Order::kReverse
                                                     : Order::kRandom,
                                seed, multiprocessors, shared_bytes};
    });
    m.def("forward_workspace", [](const py::dict& a) { return workspace_bytes(forward(a)); });
    m.def("backward_workspace", [](const py::dict& a) { return workspace_bytes(backward(a)); });
    m.def("forward", [](const py::dict& a, uintptr_t workspace) { run_checked(forward(a), workspace); });
    m.def("backward", [](const py::dict& a, uintptr_t workspace) { run_checked(backward(a), workspace); });
}
