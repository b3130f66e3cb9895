// The kernels' C interface. library.py checks every argument before it calls; nothing is checked
// here. Compiled when first used, for the machine's instruction set: see build.py.

#include "attention.hpp"
#include "denormals.hpp"
#include "fused.hpp"

using namespace uellm;

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void uellm_use_openmp(decltype(OpenMP::parallel) parallel,
                             decltype(OpenMP::max_threads) max_threads,
                             decltype(OpenMP::thread_num) thread_num,
                             decltype(OpenMP::num_threads) num_threads) {
    openmp = {parallel, max_threads, thread_num, num_threads};
}

// How many threads take part in a call, counted by having them take part in one.
EXPORT int uellm_threads() {
    std::atomic<int> seen{0};
    on_threads(true, [&](int64_t, int64_t) { seen.fetch_add(1); });
    return seen.load();
}

// Every thread of the team takes numbers next to zero for zero, until what this gives is given back.
EXPORT void* uellm_flush_denormals() { return flush_denormals(); }
EXPORT void uellm_restore_denormals(void* before) {
    restore_denormals(static_cast<Flushed*>(before));
}

// The number of tokens, or -1 where the rows make no sense; `longest` is the longest row's KV.
EXPORT int uellm_check_plan(const int32_t* query_start, const int32_t* kv_len, int64_t rows,
                            int64_t* longest) {
    *longest = 0;
    if (query_start[0] != 0) return -1;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t tokens = int64_t(query_start[row + 1]) - query_start[row];
        if (tokens < 0 || tokens > kv_len[row]) return -1;
        if (tokens > 0 && kv_len[row] > *longest) *longest = kv_len[row];
    }
    return query_start[rows];
}

EXPORT int uellm_attend(const AttendArgs* args) {
    return args->is_bf16 ? attend<bf16>(*args) : attend<float>(*args);
}

EXPORT void uellm_store(const StoreArgs* args) { store_tokens(*args); }

EXPORT void uellm_rope_store(const RopeArgs* args) {
    args->is_bf16 ? rope_store<bf16>(*args) : rope_store<float>(*args);
}

// `residual` may be null; else it becomes residual + x, and its norm is what is written.
EXPORT void uellm_rms_norm(const void* x, void* residual, const void* weight, void* out,
                           int64_t rows, int64_t n, float eps, int is_bf16) {
    const auto run = [&](auto type) {
        using T = decltype(type);
        rms_norm(static_cast<const T*>(x), static_cast<T*>(residual),
                 static_cast<const T*>(weight), static_cast<T*>(out), rows, n, eps);
    };
    is_bf16 ? run(bf16{}) : run(float{});
}

EXPORT void uellm_silu_mul(const void* gate_up, void* out, int64_t rows, int64_t n, int is_bf16) {
    const auto run = [&](auto type) {
        using T = decltype(type);
        silu_mul(static_cast<const T*>(gate_up), static_cast<T*>(out), rows, n);
    };
    is_bf16 ? run(bf16{}) : run(float{});
}

EXPORT int uellm_argmax(const void* x, int64_t rows, int64_t n, int64_t stride, int64_t* ids,
                        float* values, int is_bf16) {
    return is_bf16 ? argmax(static_cast<const bf16*>(x), rows, n, stride, ids, values)
                   : argmax(static_cast<const float*>(x), rows, n, stride, ids, values);
}
