// The attention GRU on CUDA: the operators attention_gru and attention_gru_backward. Checks the tensors and
// makes outputs and workspace; the launchers that attention_gru_cuda.h declares do the rest.
//
// What differs from the operators on the CPU: lengths, offsets and x_start are int64 in device memory, and
// their values are not read here. Attention and h0 of 16-bit inputs are float32, and so are their gradients.
// Backward needs the states, in float32 for 16-bit inputs: they take the place of the CPU's gates.

#include "attention_gru_cuda.h"

#include <optional>
#include <tuple>
#include <vector>

#include "../common/operator.h"

namespace dien_fast::cuda {
namespace {

Type type_of(const Tensor& x) {
    switch (x.scalar_type()) {
        case ScalarType::Float:
            return Type::kFloat;
        case ScalarType::Double:
            return Type::kDouble;
        case ScalarType::Half:
            return Type::kHalf;
        case ScalarType::BFloat16:
            return Type::kBFloat16;
        default:
            STD_TORCH_CHECK(false, "x must have dtype float32, float64, bfloat16 or float16");
            return {};  // for the compiler, which does not know that the check throws
    }
}

// The first row of each step and N, which layout.step_start points to.
std::vector<int64_t> read_batch_sizes(Layout& layout, const Tensor& batch_sizes, int64_t h0_rows) {
    STD_TORCH_CHECK(batch_sizes.dim() == 1 && batch_sizes.is_cpu() && batch_sizes.is_contiguous() &&
                        batch_sizes.scalar_type() == ScalarType::Long,
                    "batch_sizes must be a contiguous int64 vector on the CPU");
    const auto* sizes = static_cast<const int64_t*>(batch_sizes.const_data_ptr());
    const int64_t rows = layout.rows;
    layout.steps = batch_sizes.size(0);
    std::vector<int64_t> step_start{0};
    bool correct = true;
    for (int64_t t = 0; correct && t < layout.steps; ++t) {
        const int64_t total = step_start.back();
        correct = sizes[t] >= 1 && sizes[t] <= rows - total && (t == 0 || sizes[t] <= sizes[t - 1]);
        if (correct) step_start.push_back(total + sizes[t]);
    }
    STD_TORCH_CHECK(correct && step_start.back() == rows, "batch_sizes must fall, be positive and sum to ",
                    rows);
    const int64_t first = layout.steps > 0 ? sizes[0] : 0;
    STD_TORCH_CHECK(h0_rows < 0 || h0_rows >= first, "h0 must have at least ", first, " rows, got ", h0_rows);
    layout.batch = h0_rows < 0 ? first : h0_rows;
    layout.step_start = step_start.data();
    return step_start;
}

// The operators' tensor arguments that both directions have.
struct Inputs {
    const Tensor& x;
    const std::optional<Tensor>& att;
    const Tensor& weight_ih;
    const Tensor& weight_hh;
    const std::optional<Tensor>& bias_ih;
    const std::optional<Tensor>& bias_hh;
    const std::optional<Tensor>& h0;
    const std::optional<Tensor>& lengths;
    const std::optional<Tensor>& offsets;
    const std::optional<Tensor>& batch_sizes;
    const std::optional<Tensor>& x_start;
};

void read_weights(Call& call, const Checks& check, const Inputs& in, int64_t cell) {
    const CellSizes sizes = check_cell(cell, in.weight_ih, in.weight_hh);
    call.cell = sizes.cell;
    call.input = sizes.input;
    call.hidden = sizes.hidden;
    call.w = check.stored("weight_ih", in.weight_ih, {sizes.gate_rows, sizes.input});
    call.u = check.stored("weight_hh", in.weight_hh, {sizes.gate_rows, sizes.hidden});
    call.bias_ih = check.stored("bias_ih", in.bias_ih, {sizes.gate_rows});
    call.bias_hh = check.stored("bias_hh", in.bias_hh, {sizes.gate_rows});
}

// Fills the call. Returns the host memory that it points to, which must outlive it.
std::vector<int64_t> read(Call& call, const Inputs& in, int64_t cell) {
    const Checks check{in.x};
    call.type = type_of(in.x);
    read_weights(call, check, in, cell);
    check_one_layout(in.lengths, in.offsets, in.batch_sizes, in.x_start);
    check_attention_given(call.cell, in.att);
    Layout& layout = call.layout;
    if (in.lengths) {
        call.x = check.stored("x", in.x, {-1, -1, call.input});
        layout.batch = in.x.size(0);
        layout.steps = in.x.size(1);
        layout.x_rows = layout.rows = layout.batch * layout.steps;
        layout.lengths = check.integers("lengths", in.lengths, {layout.batch});
        call.att = check.widened("att", in.att, {layout.batch, layout.steps});
    } else {
        call.x = check.stored("x", in.x, {-1, call.input});
        layout.x_rows = layout.rows = in.x.size(0);
        if (in.x_start) {
            STD_TORCH_CHECK(in.att && in.att->dim() == 1,
                            "att must tell the number of rows where x_start is given");
            layout.rows = in.att->size(0);
        }
        call.att = check.widened("att", in.att, {layout.rows});
    }
    if (in.offsets) {
        layout.batch = check.size_of(*in.offsets);
        layout.offsets = check.integers("offsets", in.offsets, {-1});
        layout.x_start = check.integers("x_start", in.x_start, {layout.batch});
    }
    if (in.h0) check_sizes("h0", *in.h0, {-1, call.hidden});
    std::vector<int64_t> steps;
    if (in.batch_sizes) steps = read_batch_sizes(layout, *in.batch_sizes, in.h0 ? in.h0->size(0) : -1);
    call.h0 = check.widened("h0", in.h0, {layout.batch, call.hidden});
    return steps;
}

std::tuple<Tensor, Tensor, Tensor> attention_gru(Tensor x, std::optional<Tensor> att, Tensor weight_ih,
                                                 Tensor weight_hh, std::optional<Tensor> bias_ih,
                                                 std::optional<Tensor> bias_hh, std::optional<Tensor> h0,
                                                 std::optional<Tensor> lengths, std::optional<Tensor> offsets,
                                                 std::optional<Tensor> batch_sizes,
                                                 std::optional<Tensor> x_start, int64_t cell,
                                                 bool save_states, bool save_gates) {
    Forward f{};
    const Inputs in{x,  att,     weight_ih, weight_hh,   bias_ih, bias_hh,
                    h0, lengths, offsets,   batch_sizes, x_start};
    const std::vector<int64_t> steps = read(f, in, cell);
    const ScalarType type = x.scalar_type();
    const bool keep = save_gates && type != wide(type);
    const int64_t hidden = f.hidden;
    Tensor states = !save_states   ? torch::stable::new_empty(x, {0, hidden})
                    : x.dim() == 3 ? torch::stable::new_empty(x, {x.size(0), x.size(1), hidden})
                                   : torch::stable::new_empty(x, {f.layout.rows, hidden});
    Tensor last = torch::stable::new_empty(x, {f.layout.batch, hidden});
    Tensor wide_states = torch::stable::new_empty(x, {keep ? f.layout.rows : 0, hidden}, wide(type));
    f.states = pointer(states);
    f.wide_states = pointer(wide_states);
    f.last = pointer(last);
    if (f.layout.batch > 0) run_in_workspace(f, x);
    return {states, last, wide_states};
}

enum Gradient { kX, kAtt, kWeights, kH0, kGradients };

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients attention_gru_backward(std::optional<Tensor> dstates, std::optional<Tensor> dlast, Tensor x,
                                 std::optional<Tensor> att, Tensor weight_ih, Tensor weight_hh,
                                 std::optional<Tensor> bias_ih, std::optional<Tensor> bias_hh,
                                 std::optional<Tensor> h0, std::optional<Tensor> lengths,
                                 std::optional<Tensor> offsets, std::optional<Tensor> batch_sizes,
                                 Tensor states, Tensor wide_states, int64_t cell, std::vector<bool> wanted) {
    STD_TORCH_CHECK(wanted.size() == kGradients, "wanted must have 4 elements, got ", wanted.size());
    Backward b{};
    const std::optional<Tensor> no_x_start;
    const Inputs in{x,  att,     weight_ih, weight_hh,   bias_ih,   bias_hh,
                    h0, lengths, offsets,   batch_sizes, no_x_start};
    const std::vector<int64_t> steps = read(b, in, cell);
    const Checks check{x};
    const int64_t hidden = b.hidden, rows = b.layout.rows;
    const ScalarType type = x.scalar_type();
    auto by_row = [&](const char* name, const std::optional<Tensor>& value) {
        return x.dim() == 3 ? check.stored(name, value, {x.size(0), x.size(1), hidden})
                            : check.stored(name, value, {rows, hidden});
    };
    const void* stored_states = by_row("states", states);
    b.states = type == wide(type) ? stored_states : check.widened("gates", wide_states, {rows, hidden});
    b.dstates = by_row("dstates", dstates);
    b.dlast = check.stored("dlast", dlast, {b.layout.batch, hidden});

    auto output = [&](bool want, Shape shape, ScalarType of) {
        return want ? torch::stable::new_empty(x, shape, of) : torch::stable::new_empty(x, {0}, of);
    };
    const bool padded = x.dim() == 3, of_att = wanted[kAtt] && att, of_weights = wanted[kWeights];
    const int64_t gate_rows = weight_hh.size(0);
    Tensor dx = padded ? output(wanted[kX], {x.size(0), x.size(1), b.input}, type)
                       : output(wanted[kX], {rows, b.input}, type);
    Tensor datt = padded ? output(wanted[kAtt], {x.size(0), x.size(1)}, wide(type))
                         : output(wanted[kAtt], {rows}, wide(type));
    Tensor dweight_ih = output(of_weights, {gate_rows, b.input}, type);
    Tensor dweight_hh = output(of_weights, {gate_rows, hidden}, type);
    Tensor dbias_ih = output(of_weights, {gate_rows}, type);
    Tensor dbias_hh = output(of_weights, {gate_rows}, type);
    Tensor dh0 = output(wanted[kH0], {b.layout.batch, hidden}, wide(type));
    b.dx = pointer(dx);
    b.datt = of_att ? pointer(datt) : nullptr;
    b.dw = pointer(dweight_ih);
    b.du = pointer(dweight_hh);
    b.dbias_ih = pointer(dbias_ih);
    b.dbias_hh = pointer(dbias_hh);
    b.dh0 = pointer(dh0);
    run_in_workspace(b, x);
    return {dx, datt, dweight_ih, dweight_hh, dbias_ih, dbias_hh, dh0};
}

}  // namespace
}  // namespace dien_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(dien_fast, CUDA, m) {
    m.impl("attention_gru", TORCH_BOX(&dien_fast::cuda::attention_gru));
    m.impl("attention_gru_backward", TORCH_BOX(&dien_fast::cuda::attention_gru_backward));
}
