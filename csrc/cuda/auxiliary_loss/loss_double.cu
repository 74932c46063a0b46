#include "loss.cuh"

namespace dien_fast::cuda {

int64_t workspace_bytes(const AuxiliaryCall<double>& call) { return loss_bytes(call); }
void run(const AuxiliaryCall<double>& call, void* workspace, void* stream) {
    run_loss(call, workspace, stream);
}

}  // namespace dien_fast::cuda
