// The operators' schemas, for programs that load the library without Python. Their kernels are in cpu/ and
// cuda/; their autograd, fake implementations and fallbacks are in dien_fast/ops/, whose copies of the
// schemas a test compares.

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
    m.def(
        "attention_scores(Tensor query, Tensor keys, Tensor offsets, Tensor? key_start, Tensor[] parameters, "
        "Tensor[] running, Tensor? seed, SymInt max_length, int[] layers, float[] epsilons, float dropout, "
        "bool training, bool save) -> (Tensor scores, Tensor statistics, Tensor saved)");
    m.def(
        "attention_scores_backward(Tensor dscores, Tensor scores, Tensor query, Tensor keys, Tensor offsets, "
        "Tensor[] parameters, Tensor[] running, Tensor? seed, Tensor saved, SymInt max_length, int[] layers, "
        "float[] epsilons, float dropout, bool training) "
        "-> (Tensor dquery, Tensor dkeys, Tensor[] dparameters)");
    m.def(
        "auxiliary_loss(Tensor states, Tensor events, Tensor negatives, Tensor offsets, Tensor[] parameters, "
        "bool save) "
        "-> (Tensor loss, Tensor dstates, Tensor devents, Tensor dnegatives, Tensor dparameters)");
    m.def("rows_from_padded(Tensor padded, Tensor offsets) -> Tensor");
    m.def("padded_from_rows(Tensor values, Tensor offsets, SymInt steps) -> Tensor");
    m.def("weighted_sum(Tensor values, Tensor weights, Tensor offsets) -> Tensor");
    m.def(
        "weighted_sum_backward(Tensor dsum, Tensor values, Tensor weights, Tensor offsets) "
        "-> (Tensor dvalues, Tensor dweights)");
    m.def("add_rows_(Tensor(a!) out, Tensor rows, Tensor ids, int padding) -> ()");
    m.def("sum_by_id(Tensor rows, Tensor ids, int padding) -> (Tensor distinct, Tensor total)");
    m.def(
        "adam_rows_(Tensor(a!) table, Tensor(b!) average, Tensor(c!) square, Tensor change, Tensor rows, "
        "float rate, float decay, float first, float second, float root, float eps) -> ()");
    m.def(
        "adagrad_rows_(Tensor(a!) table, Tensor(b!) sum, Tensor change, Tensor rows, float rate, float "
        "decay, "
        "float eps) -> ()");
    m.def("cpu_capability() -> str");
    m.def("vector_bytes(int[] widths) -> int");
}
