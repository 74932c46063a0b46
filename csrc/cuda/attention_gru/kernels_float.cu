#include "backward.cuh"
#include "forward.cuh"

namespace dien_fast::cuda {

template int64_t forward_bytes<float>(const Forward&);
template int64_t backward_bytes<float>(const Backward&);
template void run_forward<float>(const Forward&, void*, void*);
template void run_backward<float>(const Backward&, void*, void*);

}  // namespace dien_fast::cuda
