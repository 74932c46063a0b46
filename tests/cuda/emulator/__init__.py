"""The CUDA kernels on the host: ``csrc/cuda`` compiled against ``platform/``, whose threads are fibers."""
