#include "backward.cuh"
#include "forward.cuh"

namespace dien_fast::cuda {

int64_t workspace_bytes(const ScoreForward<float>& f) { return forward_bytes(f); }
int64_t workspace_bytes(const ScoreBackward<float>& b) { return backward_bytes(b); }
void run(const ScoreForward<float>& f, void* workspace, void* stream) { run_forward(f, workspace, stream); }
void run(const ScoreBackward<float>& b, void* workspace, void* stream) { run_backward(b, workspace, stream); }

}  // namespace dien_fast::cuda
