// One vector type, `vf` (W floats), and what the kernels need of it, for every instruction set.
//
// GCC's vector extensions, which clang has too, do the arithmetic. The build turns contraction off
// (-ffp-contract=off), so that a product and a sum are rounded twice, as torch rounds them, unless
// `fma` is asked for by name.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace uellm {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));

struct bf16 {
    uint16_t bits;
};

INLINE vf splat(float x) { return x - vf{}; }
INLINE vi splat_int(int32_t x) { return x - vi{}; }

INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

INLINE vf sqrt_of(vf x) {
#if defined(__AVX512F__)
    return (vf)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
    return (vf)_mm256_sqrt_ps((__m256)x);
#else
    for (int i = 0; i < W; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
}

// NaN in `a` survives both; NaN in `b` does not.
INLINE vf max_keeping_first(vf a, vf b) { return b > a ? b : a; }
INLINE vf min_keeping_first(vf a, vf b) { return b < a ? b : a; }

// --- memory: whole vectors, or the first `n` lanes of one (the others read as zero) -------------

struct Whole {};

INLINE vf load(const float* p, Whole = {}) {
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}
INLINE vf load(const bf16* p, Whole = {}) {
    vh h;
    memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
}
INLINE void store(float* p, vf x, Whole = {}) { memcpy(p, &x, sizeof x); }
// A bfloat16 in the upper half of each lane; what the lower half holds is no part of it.
INLINE vu bf16_bits(vf x) {
    vu bits = (vu)x;
    vu rounded = bits + (((bits >> 16) & 1u) + 0x7fffu);  // to nearest, ties to even
    return x == x ? rounded : (vu)splat_int(0x7fc00000);
}
INLINE void store(bf16* p, vf x, Whole = {}) {
    vh h = __builtin_convertvector(bf16_bits(x) >> 16, vh);
    memcpy(p, &h, sizeof h);
}
template <class T>
INLINE vf load(const T* p, int n) {
    T part[W] = {};
    memcpy(part, p, n * sizeof(T));
    return load(part);
}
template <class T>
INLINE void store(T* p, vf x, int n) {
    T part[W];
    store(part, x);
    memcpy(p, part, n * sizeof(T));
}

// `f(i, Whole{})` for every whole vector of n elements, then `f(i, rest)` for what is left.
template <class F>
INLINE void each_vector(int64_t n, F f) {
    int64_t i = 0;
    for (; i + W <= n; i += W) f(i, Whole{});
    if (i < n) f(i, static_cast<int>(n - i));
}

// What a value becomes where torch would write it to a tensor of T and read it back.
template <class T>
INLINE vf rounded_to(vf x) {
    if constexpr (sizeof(T) == sizeof(float))
        return x;
    else
        return (vf)(bf16_bits(x) & 0xffff0000u);
}

// --- shuffles: halves of every segment of two vectors, put side by side -------------------------

// A vector is read as segments of `Size` lanes; the result alternates a's and b's lower (or upper)
// halves of them. With sums this folds W vectors into one of their W totals; without, it transposes.
constexpr int half_of(int lane, int size, bool upper) {
    int half = size / 2, segment = lane / size, within = lane % size;
    int source = segment * size + within % half + (upper ? half : 0);
    return within < half ? source : W + source;
}
template <int Size, bool Upper, int... Lane>
INLINE vf halves(vf a, vf b, std::integer_sequence<int, Lane...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, half_of(Lane, Size, Upper)...);
#else
    return __builtin_shuffle(a, b, vi{half_of(Lane, Size, Upper)...});
#endif
}
template <int Size, bool Upper>
INLINE vf halves(vf a, vf b) {
    return halves<Size, Upper>(a, b, std::make_integer_sequence<int, W>{});
}

template <int Count>
INLINE void fold(vf* x) {
    constexpr int half = Count / 2;  // `Count` vectors, each in segments of as many lanes
    for (int i = 0; i < half; i++)
        x[i] = halves<Count, false>(x[i], x[i + half]) + halves<Count, true>(x[i], x[i + half]);
    if constexpr (half > 1) fold<half>(x);
}
// Lane i of the result is the sum over x[i]'s lanes. Overwrites x.
INLINE vf totals(vf* x) {
    fold<W>(x);
    return x[0];
}

template <int Size>
INLINE void transpose_step(vf* x) {
    constexpr int half = Size / 2;
    for (int at = 0; at < W; at += Size)
        for (int i = at; i < at + half; i++) {
            vf a = x[i], b = x[i + half];
            x[i] = halves<Size, false>(a, b);
            x[i + half] = halves<Size, true>(a, b);
        }
    if constexpr (half > 1) transpose_step<half>(x);
}
// x[i][j] becomes x[j][i].
INLINE void transpose(vf* x) { transpose_step<W>(x); }

// Every lane of the result is the sum (or the largest) of all; pairwise, in one fixed order.
template <int Apart, int... Lane>
INLINE vf swapped(vf x, std::integer_sequence<int, Lane...>) {
#if defined(__clang__)
    return __builtin_shufflevector(x, x, (Lane ^ Apart)...);
#else
    return __builtin_shuffle(x, vi{(Lane ^ Apart)...});
#endif
}
template <int Apart = W / 2>
INLINE vf sum_everywhere(vf x) {
    x = x + swapped<Apart>(x, std::make_integer_sequence<int, W>{});
    if constexpr (Apart > 1) x = sum_everywhere<Apart / 2>(x);
    return x;
}
template <int Apart = W / 2>
INLINE vf max_everywhere(vf x) {
    x = max_keeping_first(x, swapped<Apart>(x, std::make_integer_sequence<int, W>{}));
    if constexpr (Apart > 1) x = max_everywhere<Apart / 2>(x);
    return x;
}
INLINE float sum_of(vf x) { return sum_everywhere(x)[0]; }
INLINE float max_of(vf x) { return max_everywhere(x)[0]; }

// --- functions ----------------------------------------------------------------------------------

// exp to about 1e-7 relative (Cephes' expf): 2^n * p(r), |r| <= ln(2)/2. Below -87.3 it is zero,
// above 88.3 it stays at exp(88.3); NaN stays NaN.
INLINE vf exp_of(vf x) {
    const vf lowest = splat(-87.3f);
    vf at = min_keeping_first(max_keeping_first(x, lowest), splat(88.3f));
    const vf magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
    vf shifted = fma(at, splat(1.44269504088896341f), magic);
    vf n = shifted - magic;
    vf r = fma(n, splat(-0.693359375f), at);
    r = fma(n, splat(2.12194440e-4f), r);
    vf p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r) + 1.f;
    vi power = ((vi)shifted - (vi)magic + 127) << 23;
    return x < lowest ? vf{} : p * (vf)power;
}

// tanh to about 1e-7 relative (Cephes' tanhf): a polynomial near zero, exp elsewhere.
INLINE vf tanh_of(vf x) {
    vf size = (vf)((vi)x & 0x7fffffff);
    vf square = x * x;
    vf p = splat(-5.70498872745e-3f);
    p = fma(p, square, splat(2.06390887954e-2f));
    p = fma(p, square, splat(-5.37397155531e-2f));
    p = fma(p, square, splat(1.33314422036e-1f));
    p = fma(p, square, splat(-3.33332819422e-1f));
    vf near = fma(p * square, x, x);
    vf far = 1.f - 2.f / (exp_of(size + size) + 1.f);
    far = (vf)((vi)far | ((vi)x & (vi)splat_int(INT32_MIN)));
    return size < 0.625f ? near : far;
}

}  // namespace uellm
