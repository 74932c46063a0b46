#include "backward.cuh"
#include "forward.cuh"

namespace dien_fast::cuda {

template int64_t forward_bytes<Half>(const Forward&);
template int64_t backward_bytes<Half>(const Backward&);
template void run_forward<Half>(const Forward&, void*, void*);
template void run_backward<Half>(const Backward&, void*, void*);

}  // namespace dien_fast::cuda
