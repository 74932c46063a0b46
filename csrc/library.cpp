// The operators' schemas. Their kernels are in cpu/, their autograd and fake implementations in
// dien_fast/_ops.py.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(dien_fast, m) {
    m.def(
        "attention_gru(Tensor x, Tensor? att, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, "
        "Tensor? bias_hh, Tensor? h0, Tensor? lengths, Tensor? offsets, Tensor? batch_sizes, Tensor? "
        "x_start, "
        "int cell, bool save_states, bool save_gates) -> (Tensor states, Tensor last, Tensor gates)");
    m.def(
        "attention_gru_backward(Tensor? dstates, Tensor? dlast, Tensor x, Tensor? att, Tensor weight_ih, "
        "Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor? h0, Tensor? lengths, Tensor? offsets, "
        "Tensor? batch_sizes, Tensor states, Tensor gates, int cell, bool[] wanted) "
        "-> (Tensor dx, Tensor datt, Tensor dweight_ih, Tensor dweight_hh, Tensor dbias_ih, Tensor dbias_hh, "
        "Tensor dh0)");
    m.def("cpu_capability() -> str");
}
