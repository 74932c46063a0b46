#include "device.h"

#include <unistd.h>

#include <stdexcept>

namespace device {

Numbers& numbers() {
    static Numbers numbers;
    return numbers;
}

void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

void write(int to, const void* bytes, size_t count) {
    const char* next = static_cast<const char*>(bytes);
    while (count > 0) {
        const ssize_t written = ::write(to, next, count);
        if (written <= 0) throw std::runtime_error("the reply cannot be written");
        next += written;
        count -= size_t(written);
    }
}

}  // namespace device

// Takes the place of the runtime's function, which would tell the same of one device alone.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    if (attribute == cudaDevAttrMultiProcessorCount)
        *value = device::numbers().multiprocessors;
    else if (attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin)
        *value = device::numbers().shared_bytes;
    else
        return cudaErrorInvalidValue;
    return cudaSuccess;
}
