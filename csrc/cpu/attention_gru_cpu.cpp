// Entry points of the CPU: checks, the schedule of a batch, memory, threads, and the choice of instruction
// set.

#include <sys/mman.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../attention_gru.h"

namespace dien_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---- Instruction sets ----

enum class Capability { kBaseline, kAvx2, kAvx512 };

Capability machine_capability() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
        return Capability::kAvx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Capability::kAvx2;
#endif
    return Capability::kBaseline;
}

Capability choose_capability() {
    const Capability machine = machine_capability();
    const char* forced = std::getenv("DIEN_FAST_CPU_CAPABILITY");
    if (forced == nullptr || *forced == '\0') return machine;
    const std::string name = forced;
    for (const auto& [known, value] : {std::pair<const char*, Capability>{"baseline", Capability::kBaseline},
                                       {"avx2", Capability::kAvx2},
                                       {"avx512", Capability::kAvx512}}) {
        if (name != known) continue;
        STD_TORCH_CHECK(value <= machine,
                        "DIEN_FAST_CPU_CAPABILITY must name an instruction set of this machine, got ", name);
        return value;
    }
    STD_TORCH_CHECK(false, "DIEN_FAST_CPU_CAPABILITY must be baseline, avx2 or avx512, got ", name);
    return machine;  // for the compiler, which does not know that the check throws
}

Capability capability() {
    static const Capability chosen = choose_capability();
    return chosen;
}

std::string cpu_capability() {
    switch (capability()) {
        case Capability::kAvx512:
            return "avx512";
        case Capability::kAvx2:
            return "avx2";
        default:
            return "baseline";
    }
}

template <typename T>
const Kernels<T>& kernels() {
#if defined(__x86_64__)
#define DIEN_FAST_KERNELS(isa)     \
    if constexpr (sizeof(T) == 4)  \
        return isa::kFloatKernels; \
    else                           \
        return isa::kDoubleKernels;
    switch (capability()) {
        case Capability::kAvx512:
            DIEN_FAST_KERNELS(avx512)
        case Capability::kAvx2:
            DIEN_FAST_KERNELS(avx2)
        default:
            DIEN_FAST_KERNELS(baseline)
    }
#else
#define DIEN_FAST_KERNELS(isa)     \
    if constexpr (sizeof(T) == 4)  \
        return isa::kFloatKernels; \
    else                           \
        return isa::kDoubleKernels;
    DIEN_FAST_KERNELS(baseline)
#endif
#undef DIEN_FAST_KERNELS
}

// ---- Memory ----

// Large blocks go back to the system at each free, so a fresh one faults on every page; large pages fault
// less.
void advise_large_pages(void* data, size_t bytes) {
#if defined(MADV_HUGEPAGE)
    constexpr uintptr_t kLargePage = uintptr_t(1) << 21;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kLargePage - 1) & ~(kLargePage - 1);
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kLargePage - 1);
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

template <typename T>
class Scratch {
  public:
    explicit Scratch(int64_t size) {
        void* data = nullptr;
        STD_TORCH_CHECK(posix_memalign(&data, 64, std::max<int64_t>(size, 1) * sizeof(T)) == 0,
                        "out of memory for ", size, " numbers of scratch");
        data_.reset(static_cast<T*>(data));
        advise_large_pages(data, size * sizeof(T));
    }
    T* data() const { return data_.get(); }

  private:
    struct Free {
        void operator()(T* data) const { std::free(data); }
    };
    std::unique_ptr<T, Free> data_;
};

Tensor empty_rows(const Tensor& like, std::initializer_list<int64_t> shape) {
    Tensor out = torch::stable::new_empty(like, shape);
    advise_large_pages(out.mutable_data_ptr(), out.numel() * out.element_size());
    return out;
}

// ---- Checks ----

template <typename T>
constexpr ScalarType kType = sizeof(T) == 4 ? ScalarType::Float : ScalarType::Double;

void check_shape(const char* name, const Tensor& value, std::initializer_list<int64_t> shape) {
    bool equal = value.dim() == int64_t(shape.size());
    int64_t dim = 0;
    std::string wanted, got;
    for (int64_t size : shape) {
        if (equal && value.size(dim) != size) equal = false;
        ++dim;
        wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
    }
    for (int64_t i = 0; i < value.dim(); ++i) got += (i == 0 ? "" : ", ") + std::to_string(value.size(i));
    STD_TORCH_CHECK(equal, name, " must have shape (", wanted, "), got (", got, ")");
    STD_TORCH_CHECK(value.is_contiguous(), name, " must be contiguous");
    STD_TORCH_CHECK(value.is_cpu(), name, " must be on the CPU");
}

template <typename T>
const T* data(const char* name, const Tensor& value, std::initializer_list<int64_t> shape) {
    check_shape(name, value, shape);
    STD_TORCH_CHECK(value.scalar_type() == kType<T>, name, " must have the dtype of x");
    return static_cast<const T*>(value.const_data_ptr());
}
template <typename T>
const T* data(const char* name, const std::optional<Tensor>& value, std::initializer_list<int64_t> shape) {
    return value ? data<T>(name, *value, shape) : nullptr;
}

const int64_t* integers(const char* name, const Tensor& value, std::initializer_list<int64_t> shape) {
    check_shape(name, value, shape);
    STD_TORCH_CHECK(value.scalar_type() == ScalarType::Long, name, " must have dtype int64");
    return static_cast<const int64_t*>(value.const_data_ptr());
}

template <typename T>
Weights<T> check_weights(int64_t cell, const Tensor& x, const Tensor& weight_ih, const Tensor& weight_hh,
                         const std::optional<Tensor>& bias_ih, const std::optional<Tensor>& bias_hh) {
    STD_TORCH_CHECK(cell >= 0 && cell <= int64_t(Cell::kGru), "cell must lie in [0, 4], got ", cell);
    STD_TORCH_CHECK(weight_hh.dim() == 2, "weight_hh must have 2 dimensions, got ", weight_hh.dim());
    const int64_t hidden = weight_hh.size(1), input = x.size(1);
    const int64_t rows = (Cell(cell) == Cell::kAgru ? 2 : 3) * hidden;
    STD_TORCH_CHECK(hidden > 0, "weight_hh must have at least one column, got 0");
    return {Cell(cell),
            input,
            hidden,
            data<T>("weight_ih", weight_ih, {rows, input}),
            data<T>("weight_hh", weight_hh, {rows, hidden}),
            data<T>("bias_ih", bias_ih, {rows}),
            data<T>("bias_hh", bias_hh, {rows})};
}

// ---- The schedule ----

// A checked batch, its histories sorted and cut into tiles, the tiles dealt to threads.
struct Schedule {
    Batch batch;
    int64_t steps = 0;  // N
    std::vector<int64_t> order;
    std::vector<std::vector<Tile>> threads;
};

Schedule make_schedule(const Tensor& lengths, const Tensor& row_start, const Tensor& x_start,
                       const std::optional<Tensor>& step_start, int64_t rows, int64_t x_rows,
                       int64_t operations_per_step) {
    Schedule s;
    STD_TORCH_CHECK(lengths.dim() == 1, "lengths must have 1 dimension, got ", lengths.dim());
    const int64_t size = lengths.size(0);
    s.batch.size = size;
    s.batch.lengths = integers("lengths", lengths, {size});
    s.batch.row_start = integers("row_start", row_start, {size});
    s.batch.x_start = integers("x_start", x_start, {size});
    const int64_t known_steps = step_start ? step_start->numel() : 0;
    s.batch.step_start = step_start ? integers("step_start", *step_start, {known_steps}) : nullptr;

    int64_t longest = 0;
    for (int64_t b = 0; b < size; ++b) {
        const int64_t length = s.batch.lengths[b];
        STD_TORCH_CHECK(length >= 0, "lengths must not be negative, got ", length);
        longest = std::max(longest, length);
    }
    STD_TORCH_CHECK(!step_start || longest <= known_steps, "lengths must be at most ", known_steps, ", got ",
                    longest);
    for (int64_t t = 1; t < known_steps; ++t)
        STD_TORCH_CHECK(s.batch.step_start[t - 1] <= s.batch.step_start[t], "step_start must not fall");
    for (int64_t b = 0; b < size; ++b) {
        const int64_t length = s.batch.lengths[b];
        if (length == 0) continue;
        // Neither a start nor a step is negative, so no sum of theirs that is compared can overflow.
        const int64_t first = s.batch.step(0), last = s.batch.step(length - 1);
        for (const auto& [start, limit] :
             {std::pair<int64_t, int64_t>{s.batch.row_start[b], rows}, {s.batch.x_start[b], x_rows}})
            STD_TORCH_CHECK(start >= 0 && first >= 0 && last < limit - start, "history ", b,
                            " must lie in rows 0 to ", limit, ", got start ", start, " and steps ", first,
                            " to ", last);
        s.steps += length;
    }

    // Longest first; counting keeps the caller's order among equals.
    std::vector<int64_t> position(longest + 2, 0);
    for (int64_t b = 0; b < size; ++b) ++position[longest - s.batch.lengths[b] + 1];
    for (int64_t length = 0; length <= longest; ++length) position[length + 1] += position[length];
    s.order.resize(size);
    for (int64_t b = 0; b < size; ++b) s.order[position[longest - s.batch.lengths[b]]++] = b;
    s.batch.order = s.order.data();

    constexpr int64_t kOperationsWorthAThread = 1 << 20;
    const int64_t worth = s.steps * operations_per_step / kOperationsWorthAThread + 1;
    const int64_t threads = std::clamp<int64_t>(torch::stable::get_num_threads(), 1, worth);
    const int64_t tile_rows = std::clamp<int64_t>((size + 2 * threads - 1) / (2 * threads), 1, kMaxTileRows);
    s.threads.resize(threads);
    std::vector<int64_t> load(threads, 0);
    for (int64_t begin = 0; begin < size; begin += tile_rows) {
        const Tile tile{begin, std::min(tile_rows, size - begin)};
        // Longest tiles come first, so giving each to the least loaded thread balances them.
        int64_t cost = s.batch.lengths[s.order[begin]];
        for (int64_t i = 0; i < tile.rows; ++i) cost += s.batch.lengths[s.order[begin + i]];
        const auto least = std::min_element(load.begin(), load.end());
        s.threads[least - load.begin()].push_back(tile);
        *least += cost;
    }
    return s;
}

// Runs f(thread) for every thread of the schedule.
template <typename F>
void for_each_thread(const Schedule& s, const F& f) {
    torch::stable::parallel_for(0, s.threads.size(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; ++thread) f(thread);
    });
}

// ---- Operators ----

template <typename T>
std::tuple<Tensor, Tensor, Tensor> run_forward(
    const Tensor& x, const std::optional<Tensor>& att, const Tensor& weight_ih, const Tensor& weight_hh,
    const std::optional<Tensor>& bias_ih, const std::optional<Tensor>& bias_hh,
    const std::optional<Tensor>& h0, const Tensor& lengths, const Tensor& row_start, const Tensor& x_start,
    const std::optional<Tensor>& step_start, int64_t rows, int64_t cell, bool save_states, bool save_gates) {
    const Kernels<T>& k = kernels<T>();
    const Weights<T> weights = check_weights<T>(cell, x, weight_ih, weight_hh, bias_ih, bias_hh);
    STD_TORCH_CHECK(att || weights.cell == Cell::kGru, "att must be given for this cell, got none");
    const int64_t hidden = weights.hidden, input = weights.input;
    const Schedule s = make_schedule(lengths, row_start, x_start, step_start, rows, x.size(0),
                                     6 * hidden * (input + hidden));
    const int64_t size = s.batch.size, gate_width = 4 * k.padded(hidden);
    Tensor states = empty_rows(x, {save_states ? rows : 0, hidden});
    Tensor last = torch::stable::new_empty(x, {size, hidden});
    Tensor gates = empty_rows(x, {save_gates ? rows : 0, gate_width});
    if (save_states && rows != s.steps) std::memset(states.mutable_data_ptr(), 0, rows * hidden * sizeof(T));

    const Scratch<T> packed(k.packed_forward_size(input, hidden));
    k.pack_forward(weights, packed.data());
    const Forward<T> f{s.batch,
                       weights,
                       packed.data(),
                       data<T>("x", x, {x.size(0), input}),
                       input,
                       data<T>("att", att, {rows}),
                       data<T>("h0", h0, {size, hidden}),
                       save_states ? static_cast<T*>(states.mutable_data_ptr()) : nullptr,
                       static_cast<T*>(last.mutable_data_ptr()),
                       save_gates ? static_cast<T*>(gates.mutable_data_ptr()) : nullptr};
    const int64_t per_thread = k.forward_scratch(input, hidden);
    const Scratch<T> scratch(per_thread * s.threads.size());
    for_each_thread(s, [&](int64_t thread) {
        for (const Tile& tile : s.threads[thread]) k.forward(f, tile, scratch.data() + thread * per_thread);
    });
    return {states, last, gates};
}

std::tuple<Tensor, Tensor, Tensor> attention_gru(Tensor x, std::optional<Tensor> att, Tensor weight_ih,
                                                 Tensor weight_hh, std::optional<Tensor> bias_ih,
                                                 std::optional<Tensor> bias_hh, std::optional<Tensor> h0,
                                                 Tensor lengths, Tensor row_start, Tensor x_start,
                                                 std::optional<Tensor> step_start, int64_t rows, int64_t cell,
                                                 bool save_states, bool save_gates) {
    STD_TORCH_CHECK(x.dim() == 2, "x must have 2 dimensions, got ", x.dim());
    STD_TORCH_CHECK(rows >= 0, "rows must not be negative, got ", rows);
    const bool single = x.scalar_type() == ScalarType::Float;
    STD_TORCH_CHECK(single || x.scalar_type() == ScalarType::Double, "x must have dtype float32 or float64");
    const auto run = single ? run_forward<float> : run_forward<double>;
    return run(x, att, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths, row_start, x_start, step_start,
               rows, cell, save_states, save_gates);
}

// Where a gate's rows stand in the caller's weights; kernels sum in the order u, r, n.
int64_t gate_block(Cell cell, int64_t gate) {
    if (cell == Cell::kAgru) return gate - 1;
    if (cell == Cell::kGru) return gate == 2 ? 2 : 1 - gate;
    return gate;
}

enum Gradient { kX, kAtt, kWeights, kH0, kGradients };

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> run_backward(
    const std::optional<Tensor>& dstates, const std::optional<Tensor>& dlast, const Tensor& x,
    const std::optional<Tensor>& att, const Tensor& weight_ih, const Tensor& weight_hh,
    const std::optional<Tensor>& bias_ih, const std::optional<Tensor>& bias_hh,
    const std::optional<Tensor>& h0, const Tensor& lengths, const Tensor& row_start, const Tensor& x_start,
    const std::optional<Tensor>& step_start, const Tensor& states, const Tensor& gates, int64_t cell,
    const std::vector<bool>& wanted) {
    const Kernels<T>& k = kernels<T>();
    const Weights<T> weights = check_weights<T>(cell, x, weight_ih, weight_hh, bias_ih, bias_hh);
    const int64_t hidden = weights.hidden, input = weights.input, rows = states.size(0);
    const int first = weights.cell == Cell::kAgru ? 1 : 0;
    const Schedule s = make_schedule(lengths, row_start, x_start, step_start, rows, x.size(0),
                                     18 * hidden * (input + hidden));
    STD_TORCH_CHECK(
        x.size(0) == rows && std::equal(s.batch.row_start, s.batch.row_start + s.batch.size, s.batch.x_start),
        "x must have a row of its own for every state where a gradient is wanted");
    const int64_t size = s.batch.size, padded_hidden = k.padded(hidden), padded_input = k.padded(input);
    const bool saved = gates.size(0) > 0;

    auto output = [&](bool want, std::initializer_list<int64_t> shape, bool zero) {
        Tensor out = want ? empty_rows(x, shape) : torch::stable::new_empty(x, {0});
        if (zero && out.numel() > 0) std::memset(out.mutable_data_ptr(), 0, out.numel() * sizeof(T));
        return out;
    };
    const bool gaps = rows != s.steps;
    Tensor dx = output(wanted[kX], {x.size(0), input}, gaps);
    Tensor datt = output(wanted[kAtt], {rows}, gaps);
    Tensor dh0 = output(wanted[kH0], {size, hidden}, false);
    auto pointer = [](const Tensor& t) {
        return t.numel() > 0 ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
    };

    const Scratch<T> packed(k.packed_backward_size(input, hidden));
    k.pack_backward(weights, packed.data());
    const Scratch<T> packed_gates(saved ? 0 : k.packed_forward_size(input, hidden));
    if (!saved) k.pack_forward(weights, packed_gates.data());
    const Backward<T> b{s.batch,
                        weights,
                        packed.data(),
                        packed_gates.data(),
                        data<T>("x", x, {x.size(0), input}),
                        input,
                        data<T>("att", att, {rows}),
                        data<T>("h0", h0, {size, hidden}),
                        data<T>("states", states, {rows, hidden}),
                        saved ? data<T>("gates", gates, {rows, 4 * padded_hidden}) : nullptr,
                        data<T>("dstates", dstates, {rows, hidden}),
                        data<T>("dlast", dlast, {size, hidden}),
                        pointer(dx),
                        pointer(datt),
                        pointer(dh0)};

    const int64_t dw_size = 3 * hidden * padded_input, du_size = 3 * hidden * padded_hidden;
    const int64_t sums_size = dw_size + du_size + 4 * padded_hidden;
    const int64_t per_thread = k.backward_scratch(input, hidden), threads = s.threads.size();
    const Scratch<T> sums(sums_size * threads);
    const Scratch<T> scratch(per_thread * threads);
    for_each_thread(s, [&](int64_t thread) {
        T* own = sums.data() + thread * sums_size;
        std::memset(own, 0, sums_size * sizeof(T));
        const WeightGradients<T> gradients{own, own + dw_size, own + dw_size + du_size};
        for (const Tile& tile : s.threads[thread])
            k.backward(b, tile, gradients, scratch.data() + thread * per_thread);
    });

    // Threads are added in their order, so that the same threads give the same bits.
    Tensor dweight_ih = output(wanted[kWeights], {(3 - first) * hidden, input}, false);
    Tensor dweight_hh = output(wanted[kWeights], {(3 - first) * hidden, hidden}, false);
    Tensor dbias_ih = output(wanted[kWeights], {(3 - first) * hidden}, false);
    Tensor dbias_hh = output(wanted[kWeights], {(3 - first) * hidden}, false);
    if (wanted[kWeights]) {
        auto add = [&](T* to, int64_t from, int64_t count) {
            if (count == 0) return;  // an empty gradient has no address
            std::memcpy(to, sums.data() + from, count * sizeof(T));
            for (int64_t thread = 1; thread < threads; ++thread) {
                const T* more = sums.data() + thread * sums_size + from;
                for (int64_t i = 0; i < count; ++i) to[i] += more[i];
            }
        };
        for (int gate = first; gate < 3; ++gate) {
            const int64_t block = gate_block(weights.cell, gate) * hidden;
            for (int64_t i = 0; i < hidden; ++i) {
                add(pointer(dweight_ih) + (block + i) * input, (gate * hidden + i) * padded_input, input);
                add(pointer(dweight_hh) + (block + i) * hidden, dw_size + (gate * hidden + i) * padded_hidden,
                    hidden);
            }
            const int64_t biases = dw_size + du_size;
            add(pointer(dbias_ih) + block, biases + (gate == 2 ? 3 : gate) * padded_hidden, hidden);
            add(pointer(dbias_hh) + block, biases + gate * padded_hidden, hidden);
        }
    }
    return {dx, datt, dweight_ih, dweight_hh, dbias_ih, dbias_hh, dh0};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> attention_gru_backward(
    std::optional<Tensor> dstates, std::optional<Tensor> dlast, Tensor x, std::optional<Tensor> att,
    Tensor weight_ih, Tensor weight_hh, std::optional<Tensor> bias_ih, std::optional<Tensor> bias_hh,
    std::optional<Tensor> h0, Tensor lengths, Tensor row_start, Tensor x_start,
    std::optional<Tensor> step_start, Tensor states, Tensor gates, int64_t cell, std::vector<bool> wanted) {
    STD_TORCH_CHECK(x.dim() == 2 && states.dim() == 2, "x and states must have 2 dimensions");
    STD_TORCH_CHECK(wanted.size() == kGradients, "wanted must have 4 elements, got ", wanted.size());
    const bool single = x.scalar_type() == ScalarType::Float;
    STD_TORCH_CHECK(single || x.scalar_type() == ScalarType::Double, "x must have dtype float32 or float64");
    const auto run = single ? run_backward<float> : run_backward<double>;
    return run(dstates, dlast, x, att, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths, row_start,
               x_start, step_start, states, gates, cell, wanted);
}

}  // namespace
}  // namespace dien_fast

STABLE_TORCH_LIBRARY_IMPL(dien_fast, CPU, m) {
    m.impl("attention_gru", TORCH_BOX(&dien_fast::attention_gru));
    m.impl("attention_gru_backward", TORCH_BOX(&dien_fast::attention_gru_backward));
}
STABLE_TORCH_LIBRARY_IMPL(dien_fast, CompositeExplicitAutograd, m) {
    m.impl("cpu_capability", TORCH_BOX(&dien_fast::cpu_capability));
}
