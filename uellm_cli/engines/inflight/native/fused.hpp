// What stands around attention in a Llama-like layer, each as one pass over memory.
//
// In bf16 every step rounds where transformers' modules round, and in fp32 nothing is contracted
// that they do not contract; only sums are taken in another order.
#pragma once

#include <limits>

#include "simd.hpp"
#include "threads.hpp"

namespace uellm {

constexpr int64_t WORTH_SHARING = 32 * 1024;  // elements below which a second thread costs more

// --- norms --------------------------------------------------------------------------------------

// transformers' LlamaRMSNorm: weight * (x / rms(x)) with the quotient rounded before the product.
template <class T>
INLINE void rms_norm_row(const T* x, const T* weight, int64_t n, float eps, T* out) {
    vf sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W)
        for (int k = 0; k < 4; k++) {
            vf at = load(x + i + k * W);
            sums[k] = fma(at, at, sums[k]);
        }
    each_vector(n - i, [&](int64_t j, auto count) {
        vf at = load(x + i + j, count);
        sums[0] = fma(at, at, sums[0]);
    });
    const float mean = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3])) / float(n);
    const vf scale = splat(1.f / __builtin_sqrtf(mean + eps));
    each_vector(n, [&](int64_t j, auto count) {
        vf normed = rounded_to<T>(load(x + j, count) * scale);
        store(out + j, load(weight + j, count) * normed, count);
    });
}

template <class T>
void rms_norm(const T* x, T* residual, const T* weight, T* out, int64_t rows, int64_t n, float eps) {
    in_shares(rows, rows * n > WORTH_SHARING, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            const T* from = x + row * n;
            if (residual) {
                T* sum = residual + row * n;
                each_vector(n, [&](int64_t i, auto count) {
                    store(sum + i, load(sum + i, count) + load(from + i, count), count);
                });
                from = sum;
            }
            rms_norm_row(from, weight, n, eps, out + row * n);
        }
    });
}

// --- gated activations --------------------------------------------------------------------------

INLINE vf silu(vf x) { return x / (1.f + exp_of(-x)); }

template <class T>
void silu_mul(const T* gate_up, T* out, int64_t rows, int64_t n) {
    constexpr int64_t SEGMENT = 1024;  // so that one long row is shared out too
    const int64_t segments = (n + SEGMENT - 1) / SEGMENT;
    in_shares(rows * segments, rows * n > WORTH_SHARING / 4, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; at++) {
            const int64_t row = at / segments, first = at % segments * SEGMENT;
            const int64_t size = n - first < SEGMENT ? n - first : SEGMENT;
            const T *gate = gate_up + row * 2 * n + first, *up = gate + n;
            T* to = out + row * n + first;
            each_vector(size, [&](int64_t i, auto count) {
                vf x = load(gate + i, count);
                vf active = rounded_to<T>(silu(x));
                store(to + i, active * load(up + i, count), count);
            });
        }
    });
}

// --- rotary positions, and the cache ------------------------------------------------------------

// `RopeArgs` in library.py is the same, field for field.
struct RopeArgs {
    void* q;             // [tokens, q_heads, dim], strided; turned in place
    const void *k, *v;   // [tokens, kv_heads, dim or v_dim], strided
    const void *cos, *sin;  // [tokens, rotary_dim]
    void *k_pool, *v_pool;
    const int64_t* slots;  // [tokens]
    int64_t q_token_stride, q_head_stride, k_token_stride, k_head_stride;
    int64_t v_token_stride, v_head_stride, tokens;
    int32_t q_heads, kv_heads, dim, v_dim, rotary_dim, is_bf16;
};

// transformers' apply_rotary_pos_emb: x * cos + rotate_half(x) * sin, each term rounded.
template <class T>
INLINE void turn(const T* from, const T* cos, const T* sin, int rotary_dim, T* to) {
    const int half = rotary_dim / 2;
    each_vector(half, [&](int64_t i, auto n) {
        vf a = load(from + i, n), b = load(from + half + i, n);
        vf low = rounded_to<T>(a * load(cos + i, n)) - rounded_to<T>(b * load(sin + i, n));
        vf high = rounded_to<T>(b * load(cos + half + i, n)) +
                  rounded_to<T>(a * load(sin + half + i, n));
        store(to + i, low, n);
        store(to + half + i, high, n);
    });
}

template <class T>
void rope_store(const RopeArgs& a) {
    const int64_t elements = a.tokens * (a.q_heads + 2 * a.kv_heads) * a.dim;
    in_shares(a.tokens, elements > WORTH_SHARING, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; token++) {
            const T* cos = static_cast<const T*>(a.cos) + token * a.rotary_dim;
            const T* sin = static_cast<const T*>(a.sin) + token * a.rotary_dim;
            T* q = static_cast<T*>(a.q) + token * a.q_token_stride;
            for (int head = 0; head < a.q_heads; head++, q += a.q_head_stride)
                turn(q, cos, sin, a.rotary_dim, q);
            const int64_t at = a.slots[token] * a.kv_heads;
            const T* k = static_cast<const T*>(a.k) + token * a.k_token_stride;
            const T* v = static_cast<const T*>(a.v) + token * a.v_token_stride;
            T* k_to = static_cast<T*>(a.k_pool) + at * a.dim;
            T* v_to = static_cast<T*>(a.v_pool) + at * a.v_dim;
            for (int head = 0; head < a.kv_heads; head++) {
                turn(k, cos, sin, a.rotary_dim, k_to);
                memcpy(k_to + a.rotary_dim, k + a.rotary_dim,
                       (a.dim - a.rotary_dim) * sizeof(T));
                memcpy(v_to, v, a.v_dim * sizeof(T));
                k += a.k_head_stride, v += a.v_head_stride, k_to += a.dim, v_to += a.v_dim;
            }
        }
    });
}

// --- the next token -----------------------------------------------------------------------------

struct Best {
    float value;
    int64_t at;
    bool is_nan() const { return value != value; }
    // As torch has it: the first NaN, else the first of the largest.
    bool beats(const Best& other) const {
        return other.is_nan() ? false : is_nan() || value > other.value;
    }
};

INLINE float value_of(const float* p) { return *p; }
INLINE float value_of(const bf16* p) {
    const uint32_t bits = uint32_t(p->bits) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T>
Best best_of(const T* x, int64_t begin, int64_t end) {
    constexpr int64_t STRIDE = 1024;
    Best best{value_of(x + begin), begin};
    if (best.is_nan()) return best;
    for (int64_t from = begin; from < end; from += STRIDE) {
        const int64_t n = end - from < STRIDE ? end - from : STRIDE;
        vf highest[4];
        vi ordered[4];
        for (int k = 0; k < 4; k++) highest[k] = splat(best.value), ordered[k] = splat_int(-1);
        int64_t i = 0;
        for (; i + 4 * W <= n; i += 4 * W)
            for (int k = 0; k < 4; k++) {
                vf at = load(x + from + i + k * W);
                highest[k] = max_keeping_first(highest[k], at);
                ordered[k] &= at == at;
            }
        float found = best.value;
        bool has_nan = false;
        for (int k = 0; k < 4; k++) {
            const float most = max_of(highest[k]);
            found = most > found ? most : found;
            for (int j = 0; j < W; j++) has_nan |= ordered[k][j] == 0;
        }
        for (; i < n; i++) {
            const float at = value_of(x + from + i);
            found = at > found ? at : found;
            has_nan |= at != at;
        }
        if (!has_nan && !(found > best.value)) continue;
        for (i = from; i < from + n; i++) {
            const float at = value_of(x + i);
            if (has_nan ? at != at : at == found) break;
        }
        best = {has_nan ? std::numeric_limits<float>::quiet_NaN() : found, i};
        if (has_nan) return best;
    }
    return best;
}

// False where memory has run out.
template <class T>
bool argmax(const T* x, int64_t rows, int64_t n, int64_t stride, int64_t* ids, float* values) {
    constexpr int64_t SEGMENT = 16 * 1024;  // so that few rows are shared out too
    const int64_t segments = (n + SEGMENT - 1) / SEGMENT;
    static thread_local Scratch scratch;
    Best* found = reinterpret_cast<Best*>(scratch.reserve(rows * segments * sizeof(Best) + 1));
    if (!found) return false;
    one_by_one(rows * segments, rows * n > WORTH_SHARING, [&](int64_t i, int64_t) {
        const int64_t begin = i % segments * SEGMENT;
        const int64_t end = begin + SEGMENT < n ? begin + SEGMENT : n;
        found[i] = best_of(x + i / segments * stride, begin, end);
    });
    for (int64_t row = 0; row < rows; row++) {
        Best best = found[row * segments];
        for (int64_t i = 1; i < segments; i++)
            if (found[row * segments + i].beats(best)) best = found[row * segments + i];
        ids[row] = best.at;
        values[row] = best.value;
    }
    return true;
}

}  // namespace uellm
