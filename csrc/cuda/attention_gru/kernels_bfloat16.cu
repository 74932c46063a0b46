#include "backward.cuh"
#include "forward.cuh"

namespace dien_fast::cuda {

template int64_t forward_bytes<BFloat16>(const Forward&);
template int64_t backward_bytes<BFloat16>(const Backward&);
template void run_forward<BFloat16>(const Forward&, void*, void*);
template void run_backward<BFloat16>(const Backward&, void*, void*);

}  // namespace dien_fast::cuda
