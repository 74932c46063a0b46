#include "runtime.h"

#include <sys/mman.h>

#include <string>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace dien_fast {
namespace {

constexpr std::pair<const char*, Capability> kNames[] = {{"baseline", Capability::kBaseline},
                                                         {"avx2", Capability::kAvx2},
                                                         {"avx512vl", Capability::kAvx512vl},
                                                         {"avx512", Capability::kAvx512}};

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

// Whether the processor works on AVX-512 vectors in two halves: AMD's family 19h, of which Zen 4 has AVX-512.
bool halves_vectors() {
#if defined(__x86_64__)
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__builtin_cpu_is("amd") || __get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return false;
    return ((eax >> 8) & 15) + ((eax >> 20) & 255) == 0x19;
#else
    return false;
#endif
}

struct Choice {
    Capability widest;
    bool by_width;  // kAvx512vl instead of kAvx512 where that wastes less on padding
};

Choice choose() {
    const Capability machine = machine_capability();
    const char* forced = std::getenv("DIEN_FAST_CPU_CAPABILITY");
    if (forced == nullptr || *forced == '\0')
        return {machine, machine == Capability::kAvx512 && halves_vectors()};
    for (const auto& [known, value] : kNames) {
        if (std::string(forced) != known) continue;
        STD_TORCH_CHECK(value <= machine,
                        "DIEN_FAST_CPU_CAPABILITY must name an instruction set of this machine, got ",
                        forced);
        return {value, false};
    }
    STD_TORCH_CHECK(false, "DIEN_FAST_CPU_CAPABILITY must be baseline, avx2, avx512vl or avx512, got ",
                    forced);
    return {machine, false};  // for the compiler, which does not know that the check throws
}

const Choice& choice() {
    static const Choice chosen = choose();
    return chosen;
}

std::string cpu_capability() {
    for (const auto& [name, value] : kNames)
        if (value == choice().widest) return name;
    return "";
}

int64_t vector_bytes(std::vector<int64_t> widths) {
    constexpr int64_t kBytes[] = {16, 32, 32, 64};
    return kBytes[int(capability(widths.data(), widths.size()))];
}

}  // namespace

Capability capability(const int64_t* widths, size_t count) {
    if (!choice().by_width) return choice().widest;
    int64_t whole = 0, half = 0;
    for (size_t i = 0; i < count; ++i) {
        whole += (widths[i] + 15) / 16 * 16;
        half += (widths[i] + 7) / 8 * 8;
    }
    // Half vectors where they save more than 5 % of the columns.
    return whole * 20 > half * 21 ? Capability::kAvx512vl : Capability::kAvx512;
}

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

Tensor empty_rows(const Tensor& like, std::initializer_list<int64_t> shape) {
    Tensor out = torch::stable::new_empty(like, shape);
    advise_large_pages(out.mutable_data_ptr(), out.numel() * out.element_size());
    return out;
}

}  // namespace dien_fast

STABLE_TORCH_LIBRARY_IMPL(dien_fast, CompositeExplicitAutograd, m) {
    m.impl("cpu_capability", TORCH_BOX(&dien_fast::cpu_capability));
    m.impl("vector_bytes", TORCH_BOX(&dien_fast::vector_bytes));
}
