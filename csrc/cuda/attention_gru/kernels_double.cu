#include "backward.cuh"
#include "forward.cuh"

namespace dien_fast::cuda {

template int64_t forward_bytes<double>(const Forward&);
template int64_t backward_bytes<double>(const Backward&);
template void run_forward<double>(const Forward&, void*, void*);
template void run_backward<double>(const Backward&, void*, void*);

}  // namespace dien_fast::cuda
