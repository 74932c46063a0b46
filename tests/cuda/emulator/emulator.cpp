#include "emulator.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {
namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr int kMaxThreads = 1024;
constexpr int kWarp = 32;

#if defined(__x86_64__)
// A switch saves what a call must not change; signal masks, which ucontext keeps too, cost a system call.
struct Context {
    void* stack_pointer = nullptr;
};
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");
void start(Context& context, char* stack, void (*entry)()) {
    auto* top = reinterpret_cast<void**>(stack + kStackBytes) - 1;
    *top = nullptr;  // where entry would return to; keeps the stack aligned as a call does
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context.stack_pointer = top;
}
void change(Context& from, Context& to) { emulator_switch(&from.stack_pointer, to.stack_pointer); }
#else
struct Context {
    ucontext_t value;
};
void start(Context& context, char* stack, void (*entry)()) {
    getcontext(&context.value);
    context.value.uc_stack.ss_sp = stack;
    context.value.uc_stack.ss_size = kStackBytes;
    context.value.uc_link = nullptr;
    makecontext(&context.value, entry, 0);
}
void change(Context& from, Context& to) { swapcontext(&from.value, &to.value); }
#endif

struct Copy {
    void* to;
    const void* from;
    int bytes;
};

enum class State { kReady, kBarrier, kShuffle, kDone };

struct Fiber {
    Context context;
    State state;
    int line;
    uint64_t shuffles;  // taken part in
    std::deque<std::vector<Copy>> groups;
    std::vector<Copy> open_group;
};

struct Warp {
    uint64_t shuffles;  // complete
    int arrived;
    int line;
    uint64_t values[2][kWarp];  // of even and odd shuffles: a lane may be one ahead of another
};

struct Piece {
    std::vector<unsigned char> memory;
    int bytes;
};
constexpr int kGuard = 256;

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::deque<Piece> pieces;
    int shared_bytes = 0, shared_used = 0;
    const std::function<void()>* kernel = nullptr;
    Context scheduler;
    int current = 0;
    std::string error;
};
Block block;

char* stack_of(int thread) {
    static std::vector<std::unique_ptr<char[]>> stacks(kMaxThreads);
    if (!stacks[thread]) stacks[thread].reset(new char[kStackBytes]);
    return stacks[thread].get();
}

struct Guard {
    char* memory;
    size_t bytes;
};
std::vector<Guard> guards;

bool poisoned(const void* memory, size_t bytes) {
    const auto* at = static_cast<const unsigned char*>(memory);
    return std::all_of(at, at + bytes, [](unsigned char byte) { return byte == kPoison; });
}

void yield(State state) {
    Fiber& fiber = block.fibers[block.current];
    fiber.state = state;
    change(fiber.context, block.scheduler);
}

// Ends the block: nothing that the other fibers hold needs to be released but what Block owns.
void fail_in_fiber(const std::string& what) {
    block.error = what + " (block " + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
                  std::to_string(blockIdx.z) + ", thread " + std::to_string(block.current) + ")";
    yield(State::kDone);
    std::abort();
}

void entry() {
    try {
        (*block.kernel)();
    } catch (const std::exception& error) {
        block.error = error.what();
    }
    yield(State::kDone);
    std::abort();
}

bool can_run(int thread) {
    Fiber& fiber = block.fibers[thread];
    return fiber.state == State::kReady ||
           (fiber.state == State::kShuffle && block.warps[thread / kWarp].shuffles >= fiber.shuffles);
}

void release_barrier() {
    const int line = block.fibers[0].line;
    for (Fiber& fiber : block.fibers) {
        if (fiber.state != State::kBarrier)
            fail("a barrier in line " + std::to_string(line) + " is not reached by all threads of the block");
        if (fiber.line != line)
            fail("threads of a block meet at barriers in lines " + std::to_string(line) + " and " +
                 std::to_string(fiber.line));
    }
    for (Fiber& fiber : block.fibers) fiber.state = State::kReady;
}

// Warps in any order, and the lanes of each; the last warp, which may be broken, stays last.
void shuffle_warps(std::vector<int>& order, std::mt19937& random) {
    const int warps = int(order.size()) / kWarp;
    std::vector<int> warp(warps);
    std::iota(warp.begin(), warp.end(), 0);
    std::shuffle(warp.begin(), warp.end(), random);
    for (int i = 0; i < warps; ++i) {
        const auto begin = order.begin() + i * kWarp;
        std::iota(begin, begin + kWarp, warp[i] * kWarp);
        std::shuffle(begin, begin + kWarp, random);
    }
}

void run_block(int threads, std::vector<int>& order, std::mt19937& random) {
    block.fibers.resize(threads);
    block.warps.assign((threads + kWarp - 1) / kWarp, Warp{});
    block.pieces.clear();
    block.shared_used = 0;
    block.error.clear();
    for (int i = 0; i < threads; ++i) {
        Fiber& fiber = block.fibers[i];
        fiber.state = State::kReady;
        fiber.shuffles = 0;
        fiber.groups.clear();
        fiber.open_group.clear();
        start(fiber.context, stack_of(i), entry);
    }
    // A warp runs as far as it can before the next one does, so that what it writes early is seen too soon.
    for (int done = 0; done < threads;) {
        if (settings().order == Order::kRandom) shuffle_warps(order, random);
        bool progress = false;
        for (int first = 0; first < threads; first += kWarp) {
            const int end = std::min(first + kWarp, threads);
            for (bool again = true; again;) {
                again = false;
                for (int i = first; i < end; ++i) {
                    const int thread = order[i];
                    if (!can_run(thread)) continue;
                    again = progress = true;
                    block.current = thread;
                    threadIdx = dim3(unsigned(thread));
                    change(block.scheduler, block.fibers[thread].context);
                    if (!block.error.empty()) fail(block.error);
                    done += block.fibers[thread].state == State::kDone;
                }
            }
        }
        if (progress || done == threads) continue;
        for (const Fiber& fiber : block.fibers)
            if (fiber.state == State::kShuffle)
                fail("a shuffle in line " + std::to_string(fiber.line) +
                     " is not reached by all lanes of the warp");
        release_barrier();
    }
    for (const Piece& piece : block.pieces)
        if (!poisoned(piece.memory.data(), kGuard) ||
            !poisoned(piece.memory.data() + kGuard + piece.bytes, piece.memory.size() - kGuard - piece.bytes))
            fail("shared memory was written outside of its pieces");
}

}  // namespace

Settings& settings() {
    static Settings value;
    return value;
}

void fail(const std::string& what) {
    guards.clear();
    throw std::runtime_error(what);
}

void guard(char* memory, size_t bytes) {
    if (!poisoned(memory, bytes)) fail("the workspace was not poisoned");
    guards.push_back({memory, bytes});
}

void check_guards() {
    for (const Guard& guard : guards)
        if (!poisoned(guard.memory, guard.bytes)) fail("the workspace was written outside of its pieces");
    guards.clear();
}

void run(dim3 blocks, int threads, int shared_bytes, const std::function<void()>& kernel) {
    const uint64_t count = uint64_t(blocks.x) * blocks.y * blocks.z;
    if (count == 0 || threads < 1 || threads > kMaxThreads || blocks.x > 2147483647u || blocks.y > 65535 ||
        blocks.z > 65535)
        fail("invalid launch of " + std::to_string(blocks.x) + " x " + std::to_string(blocks.y) + " x " +
             std::to_string(blocks.z) + " blocks of " + std::to_string(threads) + " threads");
    if (shared_bytes > settings().shared_bytes)
        fail("a launch asks for more shared memory than a block may have");
    block.kernel = &kernel;
    block.shared_bytes = shared_bytes;
    gridDim = blocks;
    blockDim = dim3(unsigned(threads));
    std::mt19937 random(settings().seed);
    std::vector<int> order(threads);
    std::iota(order.begin(), order.end(), 0);
    if (settings().order == Order::kReverse) std::reverse(order.begin(), order.end());
    for (uint64_t i = 0; i < count; ++i) {
        const uint64_t at = settings().order == Order::kReverse ? count - 1 - i : i;
        blockIdx = dim3(unsigned(at % blocks.x), unsigned(at / blocks.x % blocks.y),
                        unsigned(at / blocks.x / blocks.y));
        run_block(threads, order, random);
    }
}

void barrier(int line) {
    block.fibers[block.current].line = line;
    yield(State::kBarrier);
}

void* shared_piece(int number, int bytes) {
    if (number == int(block.pieces.size())) {
        block.shared_used += (bytes + 15) / 16 * 16;
        if (block.shared_used > block.shared_bytes)
            fail_in_fiber("more shared memory is taken than was asked for");
        block.pieces.push_back({std::vector<unsigned char>(bytes + 2 * kGuard, kPoison), bytes});
    }
    Piece& piece = block.pieces[number];
    if (piece.bytes != bytes) fail_in_fiber("threads of a block take different shared memory");
    return piece.memory.data() + kGuard;
}

uint64_t shuffle_xor(uint64_t value, int mask, int line) {
    const int thread = block.current, lane = thread % kWarp;
    Fiber& fiber = block.fibers[thread];
    Warp& warp = block.warps[thread / kWarp];
    if (warp.arrived > 0 && warp.line != line)
        fail_in_fiber("lanes of a warp meet at shuffles in lines " + std::to_string(warp.line) + " and " +
                      std::to_string(line));
    warp.line = fiber.line = line;
    uint64_t* values = warp.values[fiber.shuffles % 2];
    values[lane] = value;
    ++fiber.shuffles;
    if (++warp.arrived == kWarp) {
        warp.arrived = 0;
        ++warp.shuffles;
    } else {
        yield(State::kShuffle);
        fiber.state = State::kReady;
    }
    return values[lane ^ mask];
}

void copy_async(void* to, const void* from, int bytes) {
    if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0)
        fail_in_fiber("an asynchronous copy is misaligned");
    std::memset(to, kPoison, bytes);
    block.fibers[block.current].open_group.push_back({to, from, bytes});
}

void copy_async_commit() {
    Fiber& fiber = block.fibers[block.current];
    fiber.groups.push_back(std::move(fiber.open_group));
    fiber.open_group.clear();
}

void copy_async_wait(int pending) {
    Fiber& fiber = block.fibers[block.current];
    for (; int(fiber.groups.size()) > pending; fiber.groups.pop_front())
        for (const Copy& copy : fiber.groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
}

}  // namespace emulator
