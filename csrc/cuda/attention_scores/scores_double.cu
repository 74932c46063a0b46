#include "backward.cuh"
#include "forward.cuh"

namespace dien_fast::cuda {

int64_t workspace_bytes(const ScoreForward<double>& f) { return forward_bytes(f); }
int64_t workspace_bytes(const ScoreBackward<double>& b) { return backward_bytes(b); }
void run(const ScoreForward<double>& f, void* workspace, void* stream) { run_forward(f, workspace, stream); }
void run(const ScoreBackward<double>& b, void* workspace, void* stream) {
    run_backward(b, workspace, stream);
}

}  // namespace dien_fast::cuda
