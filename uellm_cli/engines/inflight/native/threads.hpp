// Work shared out over the threads of the OpenMP runtime that torch has already loaded.
//
// Nothing here is compiled with -fopenmp: the runtime's own entry points are handed over once, by
// `uellm_use_openmp`, looked up in the library that torch itself is linked with. So there is never
// a second pool of threads that fights torch's for the cores; without a runtime, all is serial.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace uellm {

struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;  // GOMP_parallel
    int (*max_threads)() = nullptr;
    int (*thread_num)() = nullptr;
    int (*num_threads)() = nullptr;
};
inline OpenMP openmp;

inline int threads() { return openmp.parallel ? openmp.max_threads() : 1; }

// `f(thread, threads)` once on each thread: on all of them or, where it does not pay, on one.
// Never on some: libgomp ends the threads that a smaller team leaves out, and must start them anew.
template <class F>
void on_threads(bool pays, F f) {
    int count = pays ? threads() : 1;
    if (count <= 1) return f(0, 1);
    auto body = [](void* data) {
        (*static_cast<F*>(data))(openmp.thread_num(), openmp.num_threads());
    };
    openmp.parallel(body, &f, static_cast<unsigned>(count), 0);
}

// `f(begin, end)`: even shares of n items.
template <class F>
void in_shares(int64_t n, bool pays, F f) {
    on_threads(pays && n > 1, [&](int64_t thread, int64_t count) {
        int64_t begin = n * thread / count, end = n * (thread + 1) / count;
        if (begin < end) f(begin, end);
    });
}

// `f(i, thread)` for every item, each taken by the next thread that is free.
template <class F>
void one_by_one(int64_t n, bool pays, F f) {
    std::atomic<int64_t> next{0};
    on_threads(pays && n > 1, [&](int64_t thread, int64_t) {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) f(i, thread);
    });
}

constexpr size_t LINE = 64;  // bytes of a cache line
inline size_t whole_lines(size_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

// Memory that is kept from call to call and only grows. It belongs to the thread that calls, which
// hands out slices to its team: a team's threads come and go with the number of threads.
struct Scratch {
    char* data = nullptr;
    size_t size = 0;

    ~Scratch() { free(data); }

    // Whole cache lines. Null where memory has run out.
    char* reserve(size_t bytes) {
        if (bytes > size) {
            free(data);
            size = 0;
            data = nullptr;
            size_t rounded = (bytes + bytes / 4 + 4095) / 4096 * 4096;
            void* got = nullptr;
            if (posix_memalign(&got, LINE, rounded) == 0) {
                data = static_cast<char*>(got);
                size = rounded;
            }
        }
        return data;
    }
};

}  // namespace uellm
