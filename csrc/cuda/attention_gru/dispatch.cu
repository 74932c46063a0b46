// Chooses the run for the type of the numbers.

#include <platform.h>

#include "runs.h"

namespace dien_fast::cuda {
namespace {

template <typename F>
auto with_type(Type type, const F& f) {
    switch (type) {
        case Type::kFloat:
            return f(float{});
        case Type::kDouble:
            return f(double{});
        case Type::kHalf:
            return f(Half{});
        case Type::kBFloat16:
            return f(BFloat16{});
    }
    throw std::runtime_error("unknown type of numbers");
}

}  // namespace

int64_t workspace_bytes(const Forward& f) {
    return with_type(f.type, [&](auto zero) { return forward_bytes<decltype(zero)>(f); });
}
int64_t workspace_bytes(const Backward& b) {
    return with_type(b.type, [&](auto zero) { return backward_bytes<decltype(zero)>(b); });
}
void run(const Forward& f, void* workspace, void* stream) {
    with_type(f.type, [&](auto zero) { run_forward<decltype(zero)>(f, workspace, stream); });
}
void run(const Backward& b, void* workspace, void* stream) {
    with_type(b.type, [&](auto zero) { run_backward<decltype(zero)>(b, workspace, stream); });
}

}  // namespace dien_fast::cuda
