// Compile CUDA C++ kernels with g++ and run them on a CPU, for tests.
//
// The threads of a block are fibers of one OS thread. Fibers run one at a time, each until it must wait: at a barrier of its
// block, at a shuffle of its warp, or in __nanosleep. An atomic operation lets all other blocks go first: they see it before
// the block's other threads go on. So a run is repeatable, and a missing barrier shows: the first fiber runs far ahead of the
// others. Every second launch visits fibers and blocks backwards. A shared variable lives in one place for all blocks, which
// is copied out and in when another block goes on. What it cannot show: weak memory ordering, bank conflicts, speed.
#pragma once

#ifndef __x86_64__
#error "fibers are switched in x86-64 assembly; add emulated_switch for this machine"
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __grid_constant__
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct dim3 {
    unsigned x, y, z;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

// The dynamic shared memory: `extern __shared__ uint4 memory[];` in a kernel means this.
inline constexpr std::size_t SHARED_LIMIT = 1 << 18;
extern uint4 memory[];
uint4 memory[SHARED_LIMIT / sizeof(uint4)];

namespace emulated {

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "emulated: block %u, thread %u: %s\n", blockIdx.x, threadIdx.x, what);
    std::abort();
}

constexpr int WARP = 32;
constexpr std::size_t STACK = 1 << 16;

extern "C" void emulated_switch(void** from, void* to);
asm(R"(
.text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch, @function
emulated_switch:
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
)");

enum class State { ready, at_warp, at_block, asleep, done };

struct Fiber {
    void* stack_pointer;
    State state;
};

struct Meeting {
    int arrived = 0, members = 0;
};

struct Block {
    unsigned index;
    std::vector<Fiber> fibers;
    std::vector<Meeting> warps;
    Meeting whole;
    std::vector<unsigned char> shared;
    std::vector<std::uint64_t> slots;  // the values that lanes of a warp exchange
    int any = 0, verdict = 0;          // the state of __syncthreads_or
};

inline Block* block;
inline Fiber* fiber;
inline void* scheduler;
inline void (*body)(void*);
inline void* body_data;
inline std::size_t shared_bytes;
inline bool backwards;
inline unsigned naps;   // how often threads slept in a launch
inline bool elsewhere;  // other blocks run next, even if threads of this one could go on

inline int thread() { return int(threadIdx.x); }

inline void wait(State state) {
    fiber->state = state;
    emulated_switch(&fiber->stack_pointer, scheduler);
}

// Returns when all members have arrived; the last one wakes the others.
inline void meet(Meeting& meeting, State state, int first, int count) {
    if (++meeting.arrived < meeting.members) {
        wait(state);
        return;
    }
    meeting.arrived = 0;
    for (int i = first; i < first + count; ++i) {
        Fiber& other = block->fibers[i];
        if (&other == fiber || other.state == State::done) continue;
        if (other.state != state) fail("some threads of a group wait elsewhere");
        other.state = State::ready;
    }
}

inline void meet_warp() {
    const int first = thread() / WARP * WARP;
    meet(block->warps[thread() / WARP], State::at_warp, first, WARP);
}

inline void meet_block() { meet(block->whole, State::at_block, 0, int(block->fibers.size())); }

inline void leave() {
    block->whole.members -= 1;
    block->warps[thread() / WARP].members -= 1;
    if (block->whole.arrived || block->warps[thread() / WARP].arrived) fail("a thread ended while others wait for it");
    wait(State::done);
}

inline void enter() {
    body(body_data);
    leave();
    fail("a finished thread went on");
}

inline void prepare(Block& b, unsigned index, unsigned threads, unsigned char* stacks) {
    b.index = index;
    b.fibers.assign(threads, {});
    b.warps.assign((threads + WARP - 1) / WARP, {});
    b.whole = {0, int(threads)};
    b.slots.assign(threads, 0);
    b.shared.assign(shared_bytes, 0xff);  // NaN, so that reading before writing shows
    for (unsigned t = 0; t < threads; ++t) {
        b.warps[t / WARP].members += 1;
        std::uintptr_t top = reinterpret_cast<std::uintptr_t>(stacks + (t + 1) * STACK) & ~std::uintptr_t(15);
        void** frame = reinterpret_cast<void**>(top) - 1;  // as after a call: rsp + 8 is a multiple of 16
        *--frame = reinterpret_cast<void*>(&enter);
        frame -= 6;
        b.fibers[t] = {frame, State::ready};
    }
}

// Run the block's fibers until all of them wait or have ended; return whether any moved.
inline bool advance(Block& b) {
    bool moved = false, again = true;
    const int threads = int(b.fibers.size());
    block = &b;
    elsewhere = false;
    blockIdx = {b.index, 0, 0};
    std::memcpy(memory, b.shared.data(), b.shared.size());
    for (Fiber& f : b.fibers) {
        if (f.state == State::asleep) f.state = State::ready;
    }
    while (again && !elsewhere) {
        again = false;
        for (int w = 0; w < threads && !elsewhere; w += WARP) {  // one warp at a time, because shuffles wait only within a warp
            const int first = backwards ? (threads - 1 - w) / WARP * WARP : w;
            bool lanes = true;
            while (lanes && !elsewhere) {
                lanes = false;
                for (int k = 0; k < WARP && !elsewhere; ++k) {
                    const int t = first + (backwards ? WARP - 1 - k : k);
                    if (t >= threads || b.fibers[t].state != State::ready) continue;
                    fiber = &b.fibers[t];
                    threadIdx = {unsigned(t), 0, 0};
                    emulated_switch(&scheduler, fiber->stack_pointer);
                    moved = again = lanes = true;
                }
            }
        }
    }
    std::memcpy(b.shared.data(), memory, b.shared.size());
    for (std::size_t i = b.shared.size(); i < b.shared.size() + 256; ++i) {
        if (reinterpret_cast<unsigned char*>(memory)[i] != 0xee) fail("wrote beyond its shared memory");
    }
    return moved;
}

inline bool finished(const Block& b) {
    for (const Fiber& f : b.fibers) {
        if (f.state != State::done) return false;
    }
    return true;
}

// Run blocks to their ends, all together if they wait for each other, otherwise one by one.
inline void run(unsigned grid, unsigned threads, std::size_t shared, bool together, void (*function)(void*), void* data) {
    static unsigned char* stacks = nullptr;
    static std::size_t room = 0;
    static std::vector<Block> blocks;
    if (shared + 256 > SHARED_LIMIT) fail("asked for more shared memory than there is");
    const unsigned live = together ? grid : 1;
    if (const std::size_t needed = std::size_t(live) * threads * STACK; room < needed) {
        std::free(stacks);
        stacks = static_cast<unsigned char*>(std::malloc(room = needed));  // untouched pages take no memory
    }
    if (blocks.size() < live) blocks.resize(live);
    std::memset(memory, 0xee, sizeof memory);
    body = function, body_data = data, shared_bytes = shared, naps = 0;
    blockDim = {threads, 1, 1}, gridDim = {grid, 1, 1};
    for (unsigned first = 0; first < grid; first += live) {
        for (unsigned i = 0; i < live; ++i) {
            const unsigned index = backwards ? grid - 1 - first - i : first + i;
            prepare(blocks[i], index, threads, stacks + std::size_t(i) * threads * STACK);
        }
        for (bool moved = true; moved;) {
            moved = false;
            for (unsigned i = 0; i < live; ++i) moved |= !finished(blocks[i]) && advance(blocks[i]);
        }
        for (unsigned i = 0; i < live; ++i) {
            if (!finished(blocks[i])) fail("threads wait for each other forever");
        }
    }
    backwards = !backwards;
}

template <class... Parameters, std::size_t... I>
void apply(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_const_t<Parameters>*>(arguments[I])...);
}

template <class... Parameters>
void launch(
    void (*kernel)(Parameters...), unsigned grid, unsigned threads, std::size_t shared, bool together, void** arguments) {
    struct Call {
        void (*kernel)(Parameters...);
        void** arguments;
    } call{kernel, arguments};
    run(grid, threads, shared, together, [](void* data) {
        Call& made = *static_cast<Call*>(data);
        apply(made.kernel, made.arguments, std::index_sequence_for<Parameters...>());
    }, &call);
}

template <class T>
T exchanged(unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= sizeof(std::uint64_t));
    if (mask != 0xffffffffu) fail("a shuffle whose mask leaves lanes out");
    std::uint64_t& mine = block->slots[thread()];
    std::memcpy(&mine, &value, sizeof value);
    meet_warp();
    T other;
    std::memcpy(&other, &block->slots[thread() / WARP * WARP + source], sizeof other);
    meet_warp();
    return other;
}

}  // namespace emulated

inline void __syncthreads() { emulated::meet_block(); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulated::meet_warp(); }
inline int __syncthreads_or(int predicate) {
    emulated::block->any |= predicate;
    emulated::meet_block();
    const int verdict = emulated::block->any;
    emulated::meet_block();
    emulated::block->any = 0;
    emulated::meet_block();
    return verdict != 0;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    return emulated::exchanged(mask, value, int(threadIdx.x % 32) ^ lanes);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
    return emulated::exchanged(mask, value, lane);
}
inline void __threadfence() {}
inline void __nanosleep(unsigned) {
    if (++emulated::naps > 1 << 20) emulated::fail("threads sleep forever");
    emulated::wait(emulated::State::asleep);
}
inline unsigned atomicAdd(unsigned* address, unsigned value) {
    const unsigned old = *address;
    *address += value;
    emulated::elsewhere = true;
    emulated::wait(emulated::State::asleep);
    return old;
}
inline double __ldcg(const double* address) { return *address; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline float __fdividef(float a, float b) { return a / b; }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
template <class To, class From>
To emulated_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline double __longlong_as_double(long long bits) { return emulated_bits<double>(bits); }
inline long long __double_as_longlong(double value) { return emulated_bits<long long>(value); }
inline unsigned __float_as_uint(float value) { return emulated_bits<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return emulated_bits<float>(bits); }

// The compiler's float16 rounds to nearest, like the device.
inline float half_to_float(unsigned short bits) { return emulated_bits<_Float16>(bits); }
inline unsigned short float_to_half(float value) { return emulated_bits<unsigned short>(static_cast<_Float16>(value)); }
