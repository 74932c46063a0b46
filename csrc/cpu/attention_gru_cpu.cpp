// The entry points of the attention GRU on the CPU.

#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "runtime.h"
#include "schedule.h"

namespace dien_fast {
namespace {

template <typename T>
const Kernels<T>& kernels(int64_t hidden) {
    const Capability chosen = capability(&hidden, 1);
    if constexpr (sizeof(T) == 4)
        return DIEN_FAST_CHOOSE(chosen, kFloatKernels);
    else
        return DIEN_FAST_CHOOSE(chosen, kDoubleKernels);
}

template <typename T>
const T* input_rows(const Tensor& x, int64_t input) {
    return x.dim() == 3 ? data<T>("x", x, {-1, -1, input}) : data<T>("x", x, {-1, input});
}

template <typename T>
const T* attention(const std::optional<Tensor>& att, const Tensor& x, const Schedule& s, Cell cell) {
    STD_TORCH_CHECK(att || cell == Cell::kGru, "att must be given for this cell, got none");
    return x.dim() == 3 ? data<T>("att", att, {x.size(0), x.size(1)}) : data<T>("att", att, {s.rows});
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> run_forward(const Tensor& x, const std::optional<Tensor>& att,
                                               const Tensor& weight_ih, const Tensor& weight_hh,
                                               const std::optional<Tensor>& bias_ih,
                                               const std::optional<Tensor>& bias_hh,
                                               const std::optional<Tensor>& h0, const Layout& layout,
                                               int64_t cell, bool save_states, bool save_gates) {
    const Weights<T> weights = check_weights<T>(cell, weight_ih, weight_hh, bias_ih, bias_hh);
    const int64_t hidden = weights.hidden, input = weights.input;
    const Kernels<T>& k = kernels<T>(hidden);
    if (h0) check_shape("h0", *h0, {-1, hidden});
    const Schedule s = make_schedule(layout, x, h0 ? h0->size(0) : -1, 6 * hidden * (input + hidden));
    const int64_t size = s.batch.size;
    const T* x_data = input_rows<T>(x, input);
    const T* att_data = attention<T>(att, x, s, weights.cell);
    const T* h0_data = data<T>("h0", h0, {size, hidden});

    Tensor states = !save_states   ? torch::stable::new_empty(x, {0, hidden})
                    : x.dim() == 3 ? empty_rows(x, {x.size(0), x.size(1), hidden})
                                   : empty_rows(x, {s.rows, hidden});
    Tensor last = torch::stable::new_empty(x, {size, hidden});
    Tensor gates = empty_rows(x, {save_gates ? s.rows : 0, 4 * k.padded(hidden)});
    if (save_states && s.rows != s.steps)
        std::memset(states.mutable_data_ptr(), 0, s.rows * hidden * sizeof(T));

    const Scratch<T> packed(k.packed_forward_size(input, hidden));
    k.pack_forward(weights, packed.data());
    Forward<T> f{s.batch,
                 weights,
                 packed.data(),
                 x_data,
                 input,
                 att_data,
                 h0_data,
                 save_states ? static_cast<T*>(states.mutable_data_ptr()) : nullptr,
                 static_cast<T*>(last.mutable_data_ptr()),
                 save_gates ? static_cast<T*>(gates.mutable_data_ptr()) : nullptr};
    // Histories that share rows share what the rows add to the gates.
    std::optional<Scratch<T>> projected, packed_states;
    if (layout.x_start && s.steps > 2 * x.size(0)) {
        const int64_t rows = x.size(0), threads = s.threads.size(), stride = 3 * k.padded(hidden);
        projected.emplace(rows * stride);
        for_each_thread(threads, [&](int64_t thread) {
            k.project(f, rows * thread / threads, rows * (thread + 1) / threads, projected->data());
        });
        f.weights.input = 0;
        f.weights.projected = true;
        packed_states.emplace(k.packed_forward_size(0, hidden));
        k.pack_forward(f.weights, packed_states->data());
        f.packed = packed_states->data();
        f.x = projected->data();
        f.x_stride = stride;
    }
    const int64_t per_thread = k.forward_scratch(input, hidden);
    const Scratch<T> scratch(per_thread * s.threads.size());
    for_each_thread(s.threads.size(), [&](int64_t thread) {
        for (const Tile& tile : s.threads[thread]) k.forward(f, tile, scratch.data() + thread * per_thread);
    });
    return {states, last, gates};
}

std::tuple<Tensor, Tensor, Tensor> attention_gru(Tensor x, std::optional<Tensor> att, Tensor weight_ih,
                                                 Tensor weight_hh, std::optional<Tensor> bias_ih,
                                                 std::optional<Tensor> bias_hh, std::optional<Tensor> h0,
                                                 std::optional<Tensor> lengths, std::optional<Tensor> offsets,
                                                 std::optional<Tensor> batch_sizes,
                                                 std::optional<Tensor> x_start, int64_t cell,
                                                 bool save_states, bool save_gates) {
    const auto run = is_single("x", x) ? run_forward<float> : run_forward<double>;
    return run(x, att, weight_ih, weight_hh, bias_ih, bias_hh, h0, {lengths, offsets, batch_sizes, x_start},
               cell, save_states, save_gates);
}

// Row block of u (gate 0), r (1) or n (2) in the caller's weights; the kernels have a copy of their own.
int64_t gate_block(Cell cell, int64_t gate) {
    if (cell == Cell::kAgru) return gate - 1;
    if (cell == Cell::kGru) return gate == 2 ? 2 : 1 - gate;
    return gate;
}

enum Gradient { kX, kAtt, kWeights, kH0, kGradients };

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename T>
Gradients run_backward(const std::optional<Tensor>& dstates, const std::optional<Tensor>& dlast,
                       const Tensor& x, const std::optional<Tensor>& att, const Tensor& weight_ih,
                       const Tensor& weight_hh, const std::optional<Tensor>& bias_ih,
                       const std::optional<Tensor>& bias_hh, const std::optional<Tensor>& h0,
                       const Layout& layout, const Tensor& states, const Tensor& gates, int64_t cell,
                       const std::vector<bool>& wanted) {
    const Weights<T> weights = check_weights<T>(cell, weight_ih, weight_hh, bias_ih, bias_hh);
    const int64_t hidden = weights.hidden, input = weights.input;
    const Kernels<T>& k = kernels<T>(hidden);
    const int64_t first = weights.cell == Cell::kAgru ? 1 : 0, count = 3 - first;
    if (h0) check_shape("h0", *h0, {-1, hidden});
    const Schedule s = make_schedule(layout, x, h0 ? h0->size(0) : -1, 18 * hidden * (input + hidden));
    const int64_t size = s.batch.size, padded_hidden = k.padded(hidden), padded_input = k.padded(input);
    const bool saved = gates.size(0) > 0;
    auto rows_of = [&](const char* name, const std::optional<Tensor>& value) {
        return x.dim() == 3 ? data<T>(name, value, {x.size(0), x.size(1), hidden})
                            : data<T>(name, value, {s.rows, hidden});
    };
    const T* x_data = input_rows<T>(x, input);
    const T* att_data = attention<T>(att, x, s, weights.cell);
    const T* h0_data = data<T>("h0", h0, {size, hidden});
    const T* states_data = rows_of("states", states);
    const T* gates_data = saved ? data<T>("gates", gates, {s.rows, 4 * padded_hidden}) : nullptr;
    const T* dstates_data = rows_of("dstates", dstates);
    const T* dlast_data = data<T>("dlast", dlast, {size, hidden});

    const bool gaps = s.rows != s.steps;
    auto output = [&](bool want, std::initializer_list<int64_t> shape) {
        return want ? empty_rows(x, shape) : torch::stable::new_empty(x, {0});
    };
    auto pointer = [](const Tensor& t) {
        return t.numel() > 0 ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
    };
    const bool padded = x.dim() == 3;
    Tensor dx =
        padded ? output(wanted[kX], {x.size(0), x.size(1), input}) : output(wanted[kX], {s.rows, input});
    Tensor datt = padded ? output(wanted[kAtt], {x.size(0), x.size(1)}) : output(wanted[kAtt], {s.rows});
    Tensor dh0 = output(wanted[kH0], {size, hidden});
    for (const Tensor& rows : {dx, datt})
        if (gaps && rows.numel() > 0) std::memset(rows.mutable_data_ptr(), 0, rows.numel() * sizeof(T));

    const Scratch<T> packed(k.packed_backward_size(input, hidden));
    k.pack_backward(weights, packed.data());
    const Scratch<T> packed_gates(saved ? 0 : k.packed_forward_size(input, hidden));
    if (!saved) k.pack_forward(weights, packed_gates.data());
    const Backward<T> b{s.batch,      weights,    packed.data(), packed_gates.data(), x_data,
                        input,        att_data,   h0_data,       states_data,         gates_data,
                        dstates_data, dlast_data, pointer(dx),   pointer(datt),       pointer(dh0)};

    const int64_t dw_size = count * hidden * padded_input, du_size = count * hidden * padded_hidden;
    const int64_t sums_size = wanted[kWeights] ? dw_size + du_size + k.padded((count + 1) * hidden) : 0;
    const int64_t per_thread = k.backward_scratch(input, hidden), threads = s.threads.size();
    const Scratch<T> sums(sums_size * threads);
    const Scratch<T> scratch(per_thread * threads);
    for_each_thread(s.threads.size(), [&](int64_t thread) {
        WeightGradients<T> gradients{};
        if (wanted[kWeights]) {
            T* own = sums.data() + thread * sums_size;
            std::memset(own, 0, sums_size * sizeof(T));
            gradients = {own, own + dw_size, own + dw_size + du_size};
        }
        for (const Tile& tile : s.threads[thread])
            k.backward(b, tile, gradients, scratch.data() + thread * per_thread);
    });

    Tensor dweight_ih = output(wanted[kWeights], {count * hidden, input});
    Tensor dweight_hh = output(wanted[kWeights], {count * hidden, hidden});
    Tensor dbias_ih = output(wanted[kWeights], {count * hidden});
    Tensor dbias_hh = output(wanted[kWeights], {count * hidden});
    if (wanted[kWeights]) {
        // Threads are added in their order, so that the same threads give the same bits.
        auto add = [&](T* to, int64_t from, int64_t length) {
            if (length == 0) return;  // an empty gradient has no address
            std::memcpy(to, sums.data() + from, length * sizeof(T));
            for (int64_t thread = 1; thread < threads; ++thread) {
                const T* more = sums.data() + thread * sums_size + from;
                for (int64_t i = 0; i < length; ++i) to[i] += more[i];
            }
        };
        for (int64_t gate = first; gate < 3; ++gate) {
            const int64_t block = gate_block(weights.cell, gate) * hidden;
            const int64_t of_w = (gate - first) * hidden, of_u = gate == 2 ? 0 : of_w + hidden;
            for (int64_t i = 0; i < hidden; ++i) {
                add(pointer(dweight_ih) + (block + i) * input, (of_w + i) * padded_input, input);
                add(pointer(dweight_hh) + (block + i) * hidden, dw_size + (of_u + i) * padded_hidden, hidden);
            }
            add(pointer(dbias_ih) + block, dw_size + du_size + of_w + hidden, hidden);
            add(pointer(dbias_hh) + block, dw_size + du_size + of_u, hidden);
        }
    }
    return {dx, datt, dweight_ih, dweight_hh, dbias_ih, dbias_hh, dh0};
}

Gradients attention_gru_backward(std::optional<Tensor> dstates, std::optional<Tensor> dlast, Tensor x,
                                 std::optional<Tensor> att, Tensor weight_ih, Tensor weight_hh,
                                 std::optional<Tensor> bias_ih, std::optional<Tensor> bias_hh,
                                 std::optional<Tensor> h0, std::optional<Tensor> lengths,
                                 std::optional<Tensor> offsets, std::optional<Tensor> batch_sizes,
                                 Tensor states, Tensor gates, int64_t cell, std::vector<bool> wanted) {
    STD_TORCH_CHECK(wanted.size() == kGradients, "wanted must have 4 elements, got ", wanted.size());
    const auto run = is_single("x", x) ? run_backward<float> : run_backward<double>;
    return run(dstates, dlast, x, att, weight_ih, weight_hh, bias_ih, bias_hh, h0,
               {lengths, offsets, batch_sizes, std::nullopt}, states, gates, cell, wanted);
}

}  // namespace
}  // namespace dien_fast

STABLE_TORCH_LIBRARY_IMPL(dien_fast, CPU, m) {
    m.impl("attention_gru", TORCH_BOX(&dien_fast::attention_gru));
    m.impl("attention_gru_backward", TORCH_BOX(&dien_fast::attention_gru_backward));
}
