// Runs the operators of csrc/cuda, but for the recurrence's, as they are, on the device of the CUDA runtime
// that it is linked with. Replies go to the file descriptor that the first argument names: the simulator
// prints to the others.
//
// A request is a line "operator multiprocessors shared_bytes chunk_bytes" and its arguments, each on a line
// of its own: a number; for a list, the number of its elements, and these; for a tensor, "1 dtype dimensions
// sizes..." and its bytes, or "0" where none is given. The reply has the operator's outputs: a tensor's
// dtype, number of dimensions and sizes, 8 bytes each, then its bytes; the number of the tensors of a list,
// in 8 bytes, and these.

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "device.h"

using torch::headeronly::IntHeaderOnlyArrayRef, torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace memory {

constexpr int64_t kGuard = 512;  // bytes on either side
constexpr int kPoison = 0xff;    // NaN in every floating-point format

// The device memory of the request's tensors.
struct Block {
    char* begin;
    int64_t bytes;  // of the tensor, between two guard zones
};
inline std::vector<Block>& blocks() {
    static std::vector<Block> blocks;
    return blocks;
}

// For operators, whose callers do not choose it.
inline int64_t& most_chunk_bytes() {
    static int64_t bytes = 0;
    return bytes;
}

// A tensor in device memory that begins as NaN, which torch takes for memory of the host.
inline Tensor allocate(IntHeaderOnlyArrayRef sizes, ScalarType type) {
    const torch::stable::Device host(torch::headeronly::DeviceType::CPU);
    std::vector<int64_t> strides(sizes.size());
    int64_t count = 1;
    for (size_t i = sizes.size(); i-- > 0; count *= sizes[i]) strides[i] = count;
    const auto bytes =
        count * int64_t(torch::stable::from_blob(nullptr, {0}, {1}, host, type).element_size());
    void* begin = nullptr;
    device::check(cudaMalloc(&begin, bytes + 2 * kGuard));
    device::check(cudaMemset(begin, kPoison, bytes + 2 * kGuard));
    blocks().push_back({static_cast<char*>(begin), bytes});
    return torch::stable::from_blob(blocks().back().begin + kGuard, sizes, {strides.data(), strides.size()},
                                    host, type);
}

inline std::string fetched(const void* from, int64_t bytes) {
    std::string to(bytes, '\0');
    if (bytes > 0) device::check(cudaMemcpy(to.data(), from, bytes, cudaMemcpyDeviceToHost));
    return to;
}

inline void check() {
    device::check(cudaDeviceSynchronize());
    const std::string poison(kGuard, char(kPoison));
    for (const Block& block : blocks()) {
        if (fetched(block.begin, kGuard) != poison ||
            fetched(block.begin + kGuard + block.bytes, kGuard) != poison)
            throw std::runtime_error("memory beside a tensor was written");
    }
}

inline void free_all() {
    for (const Block& block : blocks()) device::check(cudaFree(block.begin));
    blocks().clear();
}

}  // namespace memory

namespace torch::stable {

inline Tensor guarded_empty(const Tensor& like, IntHeaderOnlyArrayRef sizes,
                            std::optional<ScalarType> type = std::nullopt) {
    return memory::allocate(sizes, type ? *type : like.scalar_type());
}

// As `to` copies from a device to the host.
inline Tensor copy_to_host(const Tensor& value, std::nullopt_t, std::nullopt_t, Device) {
    const Tensor copy = new_empty(value, value.sizes());
    const std::string bytes = memory::fetched(value.const_data_ptr(), value.numel() * value.element_size());
    std::memcpy(copy.mutable_data_ptr(), bytes.data(), bytes.size());
    return copy;
}

}  // namespace torch::stable

#define OPERATORS dien_fast_simulated
#include "../support/cuda_operators.h"
#define to(...) copy_to_host(__VA_ARGS__)

#include "../../csrc/cuda/attention_scores/attention_scores_cuda.cpp"
#include "../../csrc/cuda/auxiliary_loss/auxiliary_loss_cuda.cpp"
#include "../../csrc/cuda/rows/rows_cuda.cpp"

namespace {

void read(int64_t& value) { std::cin >> value; }
void read(bool& value) { std::cin >> value; }
void read(double& value) { std::cin >> value; }
void read(std::optional<Tensor>& value) {
    bool given = false;
    std::cin >> given;
    if (!given) return;
    int64_t type = 0, dimensions = 0;
    std::cin >> type >> dimensions;
    std::vector<int64_t> sizes(dimensions);
    for (int64_t& size : sizes) std::cin >> size;
    std::cin.ignore();  // the end of the line
    value = memory::allocate({sizes.data(), sizes.size()}, ScalarType(type));
    std::string bytes(value->numel() * value->element_size(), '\0');
    std::cin.read(bytes.data(), std::streamsize(bytes.size()));
    if (bytes.empty()) return;
    device::check(cudaMemcpy(value->mutable_data_ptr(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
}
void read(Tensor& value) {
    std::optional<Tensor> given;
    read(given);
    value = given.value();
}
template <typename T>
void read(std::vector<T>& values) {
    size_t count = 0;
    std::cin >> count;
    values.resize(count);
    for (T& value : values) read(value);
}

void reply(int descriptor, const Tensor& value) {
    std::vector<int64_t> head{int64_t(value.scalar_type()), value.dim()};
    for (int64_t i = 0; i < value.dim(); ++i) head.push_back(value.size(i));
    device::write(descriptor, head.data(), head.size() * sizeof(int64_t));
    const std::string bytes = memory::fetched(value.const_data_ptr(), value.numel() * value.element_size());
    device::write(descriptor, bytes.data(), bytes.size());
}
void reply(int descriptor, const std::vector<Tensor>& values) {
    const auto count = int64_t(values.size());
    device::write(descriptor, &count, sizeof(count));
    for (const Tensor& value : values) reply(descriptor, value);
}
template <typename... T>
void reply(int descriptor, const std::tuple<T...>& values) {
    std::apply([&](const auto&... value) { (reply(descriptor, value), ...); }, values);
}

template <typename Result, typename... Arguments>
void answer(Result (*compute)(Arguments...), int descriptor) {
    std::tuple<Arguments...> arguments;
    std::apply([](auto&... argument) { (read(argument), ...); }, arguments);
    const Result result = std::apply(compute, arguments);
    std::fflush(stdout);  // the caller reads which kernels were launched
    reply(descriptor, result);
    memory::free_all();
}

#define ENTRY(name) {#name, [](int descriptor) { answer(dien_fast::cuda::name, descriptor); }}
const std::map<std::string, std::function<void(int)>> kOperators = {
    ENTRY(attention_scores), ENTRY(attention_scores_backward), ENTRY(auxiliary_loss),
    ENTRY(weighted_sum),     ENTRY(weighted_sum_backward),     ENTRY(padded_from_rows),
};

}  // namespace

int main(int, char** arguments) {
    const int descriptor = std::atoi(arguments[1]);
    std::string name;
    device::Numbers& numbers = device::numbers();
    try {
        while (std::cin >> name >> numbers.multiprocessors >> numbers.shared_bytes >>
               memory::most_chunk_bytes())
            kOperators.at(name)(descriptor);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "operators: %s\n", error.what());
        return 1;
    }
    return 0;
}
