// Numbers next to zero ("denormals") taken for zero: they take a processor a hundred times as long.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "threads.hpp"

namespace uellm {

// What a thread has set for its floating-point unit, and the bits by which denormals are zero, both
// as results and as operands. Zero bits where it is not known how.
#if defined(__x86_64__)
constexpr uint64_t DENORMALS_ARE_ZERO = 0x8000 | 0x0040;  // MXCSR's FTZ and DAZ
inline uint64_t float_control() { return _mm_getcsr(); }
inline void set_float_control(uint64_t bits) { _mm_setcsr(static_cast<unsigned>(bits)); }
#elif defined(__aarch64__)
constexpr uint64_t DENORMALS_ARE_ZERO = uint64_t(1) << 24;  // FPCR's FZ
inline uint64_t float_control() {
    uint64_t bits;
    asm volatile("mrs %0, fpcr" : "=r"(bits));
    return bits;
}
inline void set_float_control(uint64_t bits) { asm volatile("msr fpcr, %0" : : "r"(bits)); }
#else
constexpr uint64_t DENORMALS_ARE_ZERO = 0;
inline uint64_t float_control() { return 0; }
inline void set_float_control(uint64_t) {}
#endif

// What the threads of a team had set before.
struct Flushed {
    int64_t threads;
    uint64_t bits[1];  // of each thread
};

// In every thread of the team, until `restore_denormals`. Null where memory has run out.
inline Flushed* flush_denormals() {
    const int64_t count = threads();
    auto* before = static_cast<Flushed*>(malloc(sizeof(Flushed) + count * sizeof(uint64_t)));
    if (!before) return nullptr;
    before->threads = count;
    on_threads(true, [&](int64_t thread, int64_t) {
        const uint64_t bits = float_control();
        before->bits[thread] = bits;
        set_float_control(bits | DENORMALS_ARE_ZERO);
    });
    return before;
}

// A thread that has joined the team since then was started by one that flushes, and took that over:
// it gets what its starter, thread 0, gets. Only these bits: others may have been set for a reason.
inline void restore_denormals(Flushed* before) {
    if (!before) return;
    on_threads(true, [&](int64_t thread, int64_t) {
        const uint64_t bits = before->bits[thread < before->threads ? thread : 0];
        set_float_control((float_control() & ~DENORMALS_ARE_ZERO) | (bits & DENORMALS_ARE_ZERO));
    });
    free(before);
}

}  // namespace uellm
