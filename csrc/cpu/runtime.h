// What every operator on the CPU needs around its kernels: the choice of instruction set, memory, threads.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#if defined(__SANITIZE_THREAD__)
#include <thread>
#include <vector>
#endif

#include "flush_denormals.h"

namespace dien_fast {

using torch::stable::Tensor;

enum class Capability { kBaseline, kAvx2, kAvx512vl, kAvx512 };

// The instruction set for rows of these widths: the machine's best, or what DIEN_FAST_CPU_CAPABILITY says.
// Where the processor works on whole AVX-512 vectors in two halves (Zen 4), whole vectors are no faster than
// half vectors, and they waste more on padding.
Capability capability(const int64_t* widths, size_t count);

// The object called `name` of the namespace of an instruction set.
#if defined(__x86_64__)
#define DIEN_FAST_CHOOSE(capability, name)                               \
    (capability == Capability::kAvx512     ? ::dien_fast::avx512::name   \
     : capability == Capability::kAvx512vl ? ::dien_fast::avx512vl::name \
     : capability == Capability::kAvx2     ? ::dien_fast::avx2::name     \
                                           : ::dien_fast::baseline::name)
#else
#define DIEN_FAST_CHOOSE(capability, name) ((void)(capability), ::dien_fast::baseline::name)
#endif

// Asks the system for large pages. Large blocks of memory go back to the system when they are freed, so that
// a new block faults on each of its pages; large pages are fewer.
void advise_large_pages(void* data, size_t bytes);

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

// An uninitialised tensor of the dtype of `like`.
Tensor empty_rows(const Tensor& like, std::initializer_list<int64_t> shape);

// Runs f(thread) for every thread below `threads`, without denormal numbers.
template <typename F>
void for_each_thread(int64_t threads, const F& f) {
    const auto run = [&f](int64_t thread) {
        const FlushDenormals flush;
        f(thread);
    };
    if (threads == 1) return run(0);
#if defined(__SANITIZE_THREAD__)  // which does not see how OpenMP's threads wait for one another
    std::vector<std::thread> others;
    for (int64_t thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
    run(0);
    for (std::thread& other : others) other.join();
#else
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; ++thread) run(thread);
    });
#endif
}

}  // namespace dien_fast
