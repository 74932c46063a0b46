// The launchers of csrc/cuda for Python. Memory is named by its address; the caller guards it.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../../support/cuda_arguments.h"
#include "emulator.h"

namespace py = pybind11;
using namespace dien_fast::cuda;

namespace {

struct Arguments {
    const py::dict& given;

    int64_t integer(const char* name) const { return given[name].cast<int64_t>(); }
    void* address(const char* name) const {
        if (!given.contains(name) || given[name].is_none()) return nullptr;
        return reinterpret_cast<void*>(given[name].cast<uintptr_t>());
    }
};

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
                                seed, multiprocessors, shared_bytes, int64_t(1) << 40};
    });
    m.def("forward_workspace", [](const py::dict& a) { return workspace_bytes(forward_of(Arguments{a})); });
    m.def("backward_workspace", [](const py::dict& a) { return workspace_bytes(backward_of(Arguments{a})); });
    m.def("forward",
          [](const py::dict& a, uintptr_t workspace) { run_checked(forward_of(Arguments{a}), workspace); });
    m.def("backward",
          [](const py::dict& a, uintptr_t workspace) { run_checked(backward_of(Arguments{a}), workspace); });
}
