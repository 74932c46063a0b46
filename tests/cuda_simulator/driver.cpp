// Runs the launchers of csrc/cuda on what it reads from its input, on the device of the CUDA runtime that it
// is linked with. Replies go to the file descriptor that the first argument names: the simulator prints to
// the others.
//
// A request is a line "direction, number of arguments, number of pieces", a line "name integer" for each
// argument, a line "address bytes" for each piece of the caller's memory, and the bytes of all pieces. An
// argument that is an address points into a piece. The reply to "forward" and "backward" is the bytes of all
// pieces afterwards; to "forward_workspace" and "backward_workspace", for which no piece is needed, it is 8
// bytes, the size.

#include <cuda_fp16.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cuda/attention_gru/runs.h"
#include "../support/cuda_arguments.h"
#include "device.h"

using namespace dien_fast::cuda;

namespace {

constexpr uint64_t kAligned = 256;  // addresses on the device equal the caller's in these bits

struct Piece {
    uint64_t address, bytes, at;  // the caller's address, and where it is in the images

    bool holds(uint64_t other) const { return address <= other && other < address + bytes; }
};

struct Request {
    std::string direction;
    std::map<std::string, int64_t> arguments;
    std::vector<Piece> pieces;
    std::vector<char> host;  // the image of all pieces
    char* device = nullptr;

    int64_t integer(const char* name) const { return arguments.at(name); }
    void* address(const char* name) const {
        const auto found = arguments.find(name);
        if (found == arguments.end() || found->second == 0) return nullptr;  // 0 where there are no elements
        const auto given = static_cast<uint64_t>(found->second);
        if (pieces.empty()) return reinterpret_cast<void*>(given);
        // The launchers read it on the host.
        const char* image = std::strcmp(name, "step_start") == 0 ? host.data() : device;
        for (const Piece& piece : pieces)
            if (piece.holds(given)) return const_cast<char*>(image) + piece.at + (given - piece.address);
        throw std::runtime_error(std::string(name) + " points into no piece");
    }
};

bool read(Request& request) {
    int64_t arguments = 0, pieces = 0;
    if (!(std::cin >> request.direction >> arguments >> pieces)) return false;
    for (int64_t i = 0; i < arguments; ++i) {
        std::string name;
        std::cin >> name;
        std::cin >> request.arguments[name];
    }
    uint64_t end = 0;
    for (int64_t i = 0; i < pieces; ++i) {
        Piece piece{};
        std::cin >> piece.address >> piece.bytes;
        piece.at = (end + kAligned - 1) / kAligned * kAligned + piece.address % kAligned;
        end = piece.at + piece.bytes;
        request.pieces.push_back(piece);
    }
    request.host.resize(end);
    std::cin.ignore();  // the end of the line
    for (const Piece& piece : request.pieces)
        std::cin.read(request.host.data() + piece.at, std::streamsize(piece.bytes));
    return bool(std::cin);
}

// Every type that the simulator can run; it has no bfloat16.
template <typename F>
auto with_type(int64_t type, const F& f) {
    switch (Type(type)) {
        case Type::kFloat:
            return f(float{});
        case Type::kDouble:
            return f(double{});
        case Type::kHalf:
            return f(__half{});
        case Type::kBFloat16:
            break;
    }
    throw std::runtime_error("this type cannot be simulated");
}

int64_t workspace_bytes(const Request& r, bool forward) {
    return with_type(r.integer("type"), [&](auto zero) {
        using T = decltype(zero);
        return forward ? forward_bytes<T>(forward_of(r)) : backward_bytes<T>(backward_of(r));
    });
}

void run(const Request& r, bool forward) {
    void* workspace = r.address("workspace");
    with_type(r.integer("type"), [&](auto zero) {
        using T = decltype(zero);
        forward ? run_forward<T>(forward_of(r), workspace, nullptr)
                : run_backward<T>(backward_of(r), workspace, nullptr);
    });
    device::check(cudaDeviceSynchronize());
}

void answer(Request& request, int to) {
    const bool forward = request.direction.rfind("forward", 0) == 0;
    device::numbers() = {int(request.integer("multiprocessors")), int(request.integer("shared_bytes"))};
    if (request.pieces.empty()) {
        const int64_t size = workspace_bytes(request, forward);
        device::write(to, &size, sizeof(size));
        return;
    }
    void* memory = nullptr;
    device::check(cudaMalloc(&memory, request.host.size()));
    request.device = static_cast<char*>(memory);
    device::check(cudaMemcpy(memory, request.host.data(), request.host.size(), cudaMemcpyHostToDevice));
    run(request, forward);
    device::check(cudaMemcpy(request.host.data(), memory, request.host.size(), cudaMemcpyDeviceToHost));
    device::check(cudaFree(memory));
    std::fflush(stdout);  // the caller reads which kernels ran
    for (const Piece& piece : request.pieces) device::write(to, request.host.data() + piece.at, piece.bytes);
}

}  // namespace

int main(int, char** arguments) {
    const int to = std::atoi(arguments[1]);
    try {
        for (Request request; read(request); request = Request{}) answer(request, to);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "driver: %s\n", error.what());
        return 1;
    }
    return 0;
}
