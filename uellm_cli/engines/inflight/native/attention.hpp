// Attention over a paged KV cache, rows of any length together: prefill, chunked prefill, decode.
//
// A row's work is cut into items: some of its queries, some of its KV heads, a range of its KV. All
// query heads that share a KV head are handled together, so its keys and values are read once. An
// item runs through its KV in blocks with an online softmax (FlashAttention), in fp32 throughout.
// Few queries (decode) take dot products straight from the pages; many (prefill) first turn a
// block of keys on its side and then run as two small matrix products.
//
// How a row is cut, and so every bit of its result, depends on that row alone: not on what else is
// in the batch and not on the number of threads, which only decide who takes an item. The number
// of heads in an item may vary, for heads do not mix.
#pragma once

#include <atomic>
#include <cmath>
#include <limits>

#include "simd.hpp"
#include "threads.hpp"

namespace uellm {

// `AttendArgs` in library.py is the same, field for field.
struct AttendArgs {
    const int32_t* query_start;  // [rows + 1]
    const int32_t* kv_len;       // [rows]
    const int32_t* table;        // [rows, table_stride]
    const void* q;               // [tokens, q_heads, k_dim], strided
    const void* k_pool;          // [pages, page_size, kv_heads, k_dim]
    const void* v_pool;          // [pages, page_size, kv_heads, v_dim]
    const float* sinks;          // [q_heads] or null
    void* out;                   // [tokens, q_heads, v_dim]
    int64_t q_token_stride, q_head_stride;
    int32_t rows, table_stride, page_size;
    int32_t q_heads, kv_heads, k_dim, v_dim;
    int32_t window;
    float scale, softcap;
    int32_t is_bf16;
};

constexpr int BLOCK = 64;           // KV positions at a time
constexpr int TILE = 64;            // queries x heads of a group that share a KV block's preparation
constexpr int FEW = 16;             // up to so many of them, preparing a block does not pay
constexpr int SPLIT = 1024;         // KV positions of an item, where a row has one tile of queries
constexpr int ITEMS_PER_THREAD = 4; // enough that the last item keeps nobody waiting for long
constexpr int MR = 4;               // rows of a matrix product's register tile
constexpr float MINUS_INFINITY = -std::numeric_limits<float>::infinity();

INLINE int padded(int n, int to) { return (n + to - 1) / to * to; }

struct Item {
    int32_t row, token_begin, token_end, head_begin, head_end, kv_begin, kv_end;
    int32_t part, parts;   // of the row's KV
    int64_t partial;       // where this part's results go, in floats, if there are several parts
    int64_t counter;       // counts the parts that are done
};

// An item's state for its queries, all heads: out of a scratch buffer.
struct Work {
    float *q, *acc, *peak, *total, *scores, *keys, *values;
    int64_t* slots;  // [2][BLOCK]
    int rows, k_stride, v_stride;

    static size_t bytes(const AttendArgs& a, int heads, int rows) {
        size_t k = padded(a.k_dim, W), v = padded(a.v_dim, W);
        size_t floats = size_t(heads) * rows * (k + v + 2 + BLOCK) +
                        BLOCK * (k + v) + 8 * 16;
        return floats * 4 + 2 * BLOCK * 8;
    }
    Work(const AttendArgs& a, char* memory, int heads, int rows)
        : rows(rows), k_stride(padded(a.k_dim, W)), v_stride(padded(a.v_dim, W)) {
        auto take = [&](size_t floats) {
            float* p = reinterpret_cast<float*>(memory);
            memory += (floats + 15) / 16 * 64;
            return p;
        };
        q = take(size_t(heads) * rows * k_stride);
        acc = take(size_t(heads) * rows * v_stride);
        peak = take(size_t(heads) * rows);
        total = take(size_t(heads) * rows);
        scores = take(size_t(heads) * rows * BLOCK);
        keys = take(size_t(BLOCK) * k_stride);
        values = take(size_t(BLOCK) * v_stride);
        slots = reinterpret_cast<int64_t*>(take(4 * BLOCK));
    }
};

// --- few queries: straight from the pages -------------------------------------------------------

// Scores of NQ queries against W / NQ keys, which are `dims` (a multiple of W) long.
template <class T, int NQ>
INLINE void dots(const float* q, int q_stride, const T* keys, const int64_t* at, int dims,
                 float* scores) {
    constexpr int NK = W / NQ;
    const T* key[NK];
    vf sums[W];
    for (int k = 0; k < NK; k++) key[k] = keys + at[k];
    for (int i = 0; i < W; i++) sums[i] = vf{};
    for (int d = 0; d < dims; d += W) {
        vf x[NQ];
        for (int i = 0; i < NQ; i++) x[i] = load(q + i * q_stride + d);
        for (int k = 0; k < NK; k++) {
            vf y = load(key[k] + d);
            for (int i = 0; i < NQ; i++) sums[i * NK + k] = fma(x[i], y, sums[i * NK + k]);
        }
    }
    float part[W];
    store(part, totals(sums));
    for (int i = 0; i < NQ; i++) memcpy(scores + i * BLOCK, part + i * NK, NK * sizeof(float));
}

template <class T, int NQ>
INLINE void all_dots(const float* q, int q_stride, const T* keys, const int64_t* at, int count,
                     int dims, float* scores) {
    for (int k = 0; k < count; k += W / NQ)
        dots<T, NQ>(q, q_stride, keys, at + k, dims, scores + k);
}

// NQ queries: acc[NV * W] += sum over positions of probability x value.
template <class T, int NQ, int NV>
INLINE void weigh(const float* p, const T* values, const int64_t* at, int count, float* acc,
                  int acc_stride) {
    vf sums[NQ][NV];
    for (int i = 0; i < NQ; i++)
        for (int v = 0; v < NV; v++) sums[i][v] = load(acc + i * acc_stride + v * W);
    for (int k = 0; k < count; k++) {
        const T* value = values + at[k];
        vf y[NV];
        for (int v = 0; v < NV; v++) y[v] = load(value + v * W);
        for (int i = 0; i < NQ; i++) {
            vf x = splat(p[i * BLOCK + k]);
            for (int v = 0; v < NV; v++) sums[i][v] = fma(x, y[v], sums[i][v]);
        }
    }
    for (int i = 0; i < NQ; i++)
        for (int v = 0; v < NV; v++) store(acc + i * acc_stride + v * W, sums[i][v]);
}

// The widest register tile first, then narrower ones for the dims that are left.
template <class T, int NQ, int NV>
INLINE void all_weigh(const float* p, const T* values, const int64_t* at, int count, float* acc,
                      int acc_stride, int dims) {
    int d = 0;
    for (; d + NV * W <= dims; d += NV * W)
        weigh<T, NQ, NV>(p, values + d, at, count, acc + d, acc_stride);
    if constexpr (NV > 1)
        if (d < dims)
            all_weigh<T, NQ, NV / 2>(p, values + d, at, count, acc + d, acc_stride, dims - d);
}

constexpr int tile_width(int queries) { return W == 16 ? (queries == 4 ? 4 : 8) : 8 / queries; }

// `f(query, NQ)` in fours, then twos, then ones.
template <class F>
INLINE void in_fours(int queries, F f) {
    int i = 0;
    for (; i + 4 <= queries; i += 4) f(i, std::integral_constant<int, 4>{});
    if (i + 2 <= queries) f(i, std::integral_constant<int, 2>{}), i += 2;
    if (i < queries) f(i, std::integral_constant<int, 1>{});
}

// --- many queries: matrix products --------------------------------------------------------------

// c[MR][NV * W] (+)= a[MR][n] * b[n][NV * W]
template <int NV, bool ADD>
INLINE void product_tile(const float* a, int a_stride, const float* b, int b_stride, float* c,
                         int c_stride, int n) {
    vf sums[MR][NV];
    for (int i = 0; i < MR; i++)
        for (int v = 0; v < NV; v++) sums[i][v] = ADD ? load(c + i * c_stride + v * W) : vf{};
    for (int k = 0; k < n; k++) {
        vf y[NV];
        for (int v = 0; v < NV; v++) y[v] = load(b + int64_t(k) * b_stride + v * W);
        for (int i = 0; i < MR; i++) {
            vf x = splat(a[i * a_stride + k]);
            for (int v = 0; v < NV; v++) sums[i][v] = fma(x, y[v], sums[i][v]);
        }
    }
    for (int i = 0; i < MR; i++)
        for (int v = 0; v < NV; v++) store(c + i * c_stride + v * W, sums[i][v]);
}

template <int NV, bool ADD>
INLINE void product(const float* a, int a_stride, const float* b, int b_stride, float* c,
                    int c_stride, int rows, int columns, int n) {
    int j = 0;
    for (; j + NV * W <= columns; j += NV * W)
        for (int i = 0; i < rows; i += MR)
            product_tile<NV, ADD>(a + i * a_stride, a_stride, b + j, b_stride,
                                  c + i * c_stride + j, c_stride, n);
    if constexpr (NV > 1)
        if (j < columns)
            product<NV / 2, ADD>(a, a_stride, b + j, b_stride, c + j, c_stride, rows, columns - j, n);
}
constexpr int PRODUCT_WIDTH = W == 16 ? 4 : 2;

// keys[dim][position] of a block; positions up to a multiple of W are zero.
template <class T>
INLINE void turn_keys(const T* pool, const int64_t* at, int count, int dims, float* keys) {
    for (int k = 0; k < count; k += W)
        for (int d = 0; d < dims; d += W) {
            vf x[W];
            for (int i = 0; i < W; i++) {
                const T* key = pool + at[k + i < count ? k + i : k] + d;
                x[i] = k + i >= count ? vf{} : d + W <= dims ? load(key) : load(key, dims - d);
            }
            transpose(x);
            for (int i = 0; i < W; i++) store(keys + (d + i) * BLOCK + k, x[i]);
        }
}

// rows[position][stride] of a block, the dims that pad it zero.
template <class T>
INLINE void copy_rows(const T* pool, const int64_t* at, int count, int dims, float* rows,
                      int stride) {
    for (int k = 0; k < count; k++)
        each_vector(dims, [&](int64_t d, auto n) {
            store(rows + int64_t(k) * stride + d, load(pool + at[k] + d, n));
        });
}

// --- the online softmax -------------------------------------------------------------------------

// Scores of one query become its weights; only positions lo <= j < hi of the block are seen.
INLINE void soften(const AttendArgs& a, float* scores, int count, int lo, int hi, float& peak,
                   float& total, float* acc, int acc_stride) {
    vi lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    const int vectors = padded(count, W);
    const bool all_seen = lo <= 0 && hi >= vectors;
    vf highest = splat(MINUS_INFINITY);
    for (int k = 0; k < vectors; k += W) {
        vf s = load(scores + k) * a.scale;
        if (a.softcap != 0.f) s = a.softcap * tanh_of(s / a.softcap);
        if (!all_seen) {
            vi at = lane + k;
            s = ((at >= lo) & (at < hi)) ? s : splat(MINUS_INFINITY);
        }
        highest = max_keeping_first(highest, s);
        store(scores + k, s);
    }
    const float before = peak, found = max_of(highest);
    if (found > before) {
        peak = found;
        if (before != MINUS_INFINITY) {
            vf less = exp_of(splat(before - found));
            total *= less[0];
            for (int d = 0; d < acc_stride; d += W) store(acc + d, load(acc + d) * less);
        }
    }
    // Where nothing has been seen yet, exp(-inf) shall be zero, not NaN.
    const float base = peak == MINUS_INFINITY ? 0.f : peak;
    vf sum = vf{};
    for (int k = 0; k < vectors; k += W) {
        vf p = exp_of(load(scores + k) - base);
        sum += p;
        store(scores + k, p);
    }
    total += sum_of(sum);
}

// --- an item ------------------------------------------------------------------------------------

// Where the positions of a block are, in tokens from the pools' start.
INLINE int find_slots(const AttendArgs& a, const Item& item, int begin, int64_t* slots) {
    const int32_t* table = a.table + int64_t(item.row) * a.table_stride;
    int count = item.kv_end - begin < BLOCK ? item.kv_end - begin : BLOCK;
    int page = begin / a.page_size, offset = begin % a.page_size;
    for (int k = 0; k < count;) {
        int64_t slot = int64_t(table[page++]) * a.page_size;
        for (; offset < a.page_size && k < count; offset++) slots[k++] = slot + offset;
        offset = 0;
    }
    return count;
}

template <class T>
INLINE void prefetch(const T* row, int dims) {
    const char* p = reinterpret_cast<const char*>(row);
    // Into the second cache: the rows' spacing would have them push each other out of the first.
    for (int i = 0; i < int(dims * sizeof(T)); i += 64) __builtin_prefetch(p + i, 0, 2);
}

template <class T>
void load_queries(const AttendArgs& a, const Item& item, const Work& w) {
    const int group = a.q_heads / a.kv_heads;
    const T* q = static_cast<const T*>(a.q);
    for (int head = item.head_begin; head < item.head_end; head++) {
        float* to = w.q + int64_t(head - item.head_begin) * w.rows * w.k_stride;
        for (int token = item.token_begin; token < item.token_end; token++)
            for (int g = 0; g < group; g++, to += w.k_stride) {
                const T* from = q + token * a.q_token_stride + (head * group + g) * a.q_head_stride;
                each_vector(a.k_dim, [&](int64_t d, auto n) { store(to + d, load(from + d, n)); });
            }
    }
}

// A block of KV positions; `at[k]` is where position begin + k is, in tokens from the pools' start,
// and goes on past `count` into what will be read next.
struct Block {
    int begin, count, known;
    const int64_t* at;
};

// `f(head, first position)`: W positions at a time, and all heads of these before the next. A
// token's heads lie side by side, so each position is read from one end to the other: the order
// that the memory is fastest in.
template <class F>
INLINE void through(const Item& item, const Block& block, F f) {
    for (int k = 0; k < block.count; k += W)
        for (int head = item.head_begin; head < item.head_end; head++) f(head, k);
}

template <class T>
INLINE void prefetch_next(const Block& block, int k, const T* pool, int64_t row, int dims) {
    const int end = k + 2 * W < block.known ? k + 2 * W : block.known;
    for (int i = k + W; i < end; i++) prefetch(pool + block.at[i] * row, dims);
}

template <class T>
void score_few(const AttendArgs& a, const Item& item, const Work& w, const Block& block) {
    const int64_t row = int64_t(a.kv_heads) * a.k_dim;
    int64_t at[W];
    through(item, block, [&](int head, int k) {
        const T* keys = static_cast<const T*>(a.k_pool) + int64_t(head) * a.k_dim;
        const int64_t first = int64_t(head - item.head_begin) * w.rows;
        prefetch_next(block, k, keys, row, a.k_dim);
        // Past the end the last one again, so that whole vectors of positions can be read.
        const int last = block.count - 1;
        for (int i = 0; i < W; i++) at[i] = block.at[k + i < last ? k + i : last] * row;
        const bool whole = a.k_dim % W == 0;
        if (!whole) {
            copy_rows(keys, at, W, a.k_dim, w.keys, w.k_stride);
            for (int i = 0; i < W; i++) at[i] = i * w.k_stride;
        }
        in_fours(w.rows, [&](int i, auto n) {
            const float* q = w.q + (first + i) * w.k_stride;
            float* scores = w.scores + (first + i) * BLOCK + k;
            if (whole)
                all_dots<T, n>(q, w.k_stride, keys, at, W, a.k_dim, scores);
            else
                all_dots<float, n>(q, w.k_stride, w.keys, at, W, w.k_stride, scores);
        });
    });
}

template <class T>
void weigh_few(const AttendArgs& a, const Item& item, const Work& w, const Block& block) {
    const int64_t row = int64_t(a.kv_heads) * a.v_dim;
    int64_t at[W];
    through(item, block, [&](int head, int k) {
        const T* values = static_cast<const T*>(a.v_pool) + int64_t(head) * a.v_dim;
        const int64_t first = int64_t(head - item.head_begin) * w.rows;
        prefetch_next(block, k, values, row, a.v_dim);
        const int count = block.count - k < W ? block.count - k : W;
        for (int i = 0; i < count; i++) at[i] = block.at[k + i] * row;
        const bool whole = a.v_dim % W == 0;
        if (!whole) {
            copy_rows(values, at, count, a.v_dim, w.values, w.v_stride);
            for (int i = 0; i < count; i++) at[i] = i * w.v_stride;
        }
        in_fours(w.rows, [&](int i, auto n) {
            const float* p = w.scores + (first + i) * BLOCK + k;
            float* acc = w.acc + (first + i) * w.v_stride;
            if (whole)
                all_weigh<T, n, tile_width(n)>(p, values, at, count, acc, w.v_stride, a.v_dim);
            else
                all_weigh<float, n, tile_width(n)>(p, w.values, at, count, acc, w.v_stride,
                                                   w.v_stride);
        });
    });
}

template <class T>
void attend_block(const AttendArgs& a, const Item& item, const Work& w, const Block& block) {
    const int group = a.q_heads / a.kv_heads, heads = item.head_end - item.head_begin;
    const int queries = (item.token_end - item.token_begin) * group;
    const bool few = queries <= FEW;
    int64_t at[BLOCK];
    if (few) {
        score_few<T>(a, item, w, block);
    } else {
        const int64_t row = int64_t(a.kv_heads) * a.k_dim;
        for (int k = 0; k < block.count; k++)
            at[k] = block.at[k] * row + int64_t(item.head_begin) * a.k_dim;
        turn_keys(static_cast<const T*>(a.k_pool), at, block.count, a.k_dim, w.keys);
        product<PRODUCT_WIDTH, false>(w.q, w.k_stride, w.keys, BLOCK, w.scores, BLOCK, w.rows,
                                      padded(block.count, W), a.k_dim);
    }

    const int row_begin = a.query_start[item.row];
    const int first_position = a.kv_len[item.row] - (a.query_start[item.row + 1] - row_begin);
    for (int i = 0; i < queries; i++) {
        const int position = first_position + item.token_begin - row_begin + i / group;
        int hi = position + 1 - block.begin, lo = a.window ? hi - a.window : 0;
        hi = hi < block.count ? hi : block.count;
        for (int64_t r = i; r < int64_t(heads) * w.rows; r += w.rows)
            soften(a, w.scores + r * BLOCK, block.count, lo, hi, w.peak[r], w.total[r],
                   w.acc + r * w.v_stride, w.v_stride);
    }

    if (few) {
        weigh_few<T>(a, item, w, block);
    } else {
        const int64_t row = int64_t(a.kv_heads) * a.v_dim;
        for (int k = 0; k < block.count; k++)
            at[k] = block.at[k] * row + int64_t(item.head_begin) * a.v_dim;
        copy_rows(static_cast<const T*>(a.v_pool), at, block.count, a.v_dim, w.values, w.v_stride);
        product<PRODUCT_WIDTH, true>(w.scores, BLOCK, w.values, w.v_stride, w.acc, w.v_stride,
                                     w.rows, w.v_stride, block.count);
    }
}

// The sink joins the denominator, and then what was gathered is divided by it.
template <class T>
INLINE void write_query(const AttendArgs& a, int64_t token, int q_head, const float* acc,
                        float peak, float total) {
    float kept = 1.f;
    if (a.sinks) {
        float sink = a.sinks[q_head], base = sink > peak ? sink : peak;
        kept = exp_of(splat(peak - base))[0];
        total = total * kept + exp_of(splat(sink - base))[0];
    }
    T* out = static_cast<T*>(a.out) + (token * a.q_heads + q_head) * a.v_dim;
    const vf share = splat(kept / total);
    each_vector(a.v_dim, [&](int64_t d, auto n) { store(out + d, load(acc + d) * share, n); });
}

// Results of a part of a row's KV: peak and total of every query head and query, then their sums.
struct Partial {
    float *peak, *total, *acc;
    Partial(const AttendArgs& a, float* memory, int64_t tokens)
        : peak(memory), total(memory + tokens * a.q_heads), acc(total + tokens * a.q_heads) {}
    static int64_t floats(const AttendArgs& a, int64_t tokens) {
        return tokens * a.q_heads * (2 + padded(a.v_dim, W));
    }
};

// Parts are added up in their order, by whoever finishes the last of them.
template <class T>
void join_parts(const AttendArgs& a, const Item& item, float* partials) {
    const int group = a.q_heads / a.kv_heads, stride = padded(a.v_dim, W);
    const int tokens = item.token_end - item.token_begin;
    const int64_t size = Partial::floats(a, tokens);
    float* memory = partials + item.partial - item.part * size;
    for (int q_head = item.head_begin * group; q_head < item.head_end * group; q_head++)
        for (int t = 0; t < tokens; t++) {
            const int64_t at = int64_t(q_head) * tokens + t;
            Partial first(a, memory, tokens);
            float peak = first.peak[at], total = first.total[at];
            float* acc = first.acc + at * stride;
            for (int part = 1; part < item.parts; part++) {
                Partial next(a, memory + part * size, tokens);
                if (next.peak[at] == MINUS_INFINITY && next.total[at] == 0.f) continue;
                float highest = next.peak[at] > peak ? next.peak[at] : peak;
                float base = highest == MINUS_INFINITY ? 0.f : highest;
                vf mine = exp_of(splat(peak - base)), theirs = exp_of(splat(next.peak[at] - base));
                total = total * mine[0] + next.total[at] * theirs[0];
                for (int d = 0; d < stride; d += W)
                    store(acc + d, load(acc + d) * mine + load(next.acc + at * stride + d) * theirs);
                peak = highest;
            }
            write_query<T>(a, item.token_begin + t, q_head, acc, peak, total);
        }
}

template <class T>
void write_item(const AttendArgs& a, const Item& item, const Work& w, float* partials,
                std::atomic<int>* counters) {
    const int group = a.q_heads / a.kv_heads, tokens = item.token_end - item.token_begin;
    Partial partial(a, partials + item.partial, tokens);
    for (int head = item.head_begin; head < item.head_end; head++)
        for (int i = 0; i < tokens * group; i++) {
            const int64_t at = int64_t(head - item.head_begin) * w.rows + i;
            const float* acc = w.acc + at * w.v_stride;
            const int q_head = head * group + i % group, token = i / group;
            if (item.parts == 1) {
                write_query<T>(a, item.token_begin + token, q_head, acc, w.peak[at], w.total[at]);
            } else {
                const int64_t to = int64_t(q_head) * tokens + token;
                partial.peak[to] = w.peak[at];
                partial.total[to] = w.total[at];
                memcpy(partial.acc + to * w.v_stride, acc, w.v_stride * sizeof(float));
            }
        }
    if (item.parts > 1 &&
        counters[item.counter].fetch_add(1, std::memory_order_acq_rel) + 1 == item.parts)
        join_parts<T>(a, item, partials);
}

template <class T>
void attend_item(const AttendArgs& a, const Item& item, char* memory, float* partials,
                 std::atomic<int>* counters) {
    const int group = a.q_heads / a.kv_heads, heads = item.head_end - item.head_begin;
    const int queries = (item.token_end - item.token_begin) * group;
    const int rows = queries <= FEW ? queries : padded(queries, MR);
    Work w(a, memory, heads, rows);
    memset(w.q, 0, size_t(heads) * rows * w.k_stride * sizeof(float));
    memset(w.acc, 0, size_t(heads) * rows * w.v_stride * sizeof(float));
    for (int i = 0; i < heads * rows; i++) w.peak[i] = MINUS_INFINITY, w.total[i] = 0.f;
    load_queries<T>(a, item, w);

    int64_t *slots = w.slots, *ahead = w.slots + BLOCK;
    int count = find_slots(a, item, item.kv_begin, slots);
    for (int begin = item.kv_begin; begin < item.kv_end; begin += BLOCK) {
        const int next = begin + BLOCK < item.kv_end ? find_slots(a, item, begin + BLOCK, ahead) : 0;
        attend_block<T>(a, item, w, {begin, count, count + next, slots});
        memcpy(slots, ahead, next * sizeof(int64_t));
        count = next;
    }
    write_item<T>(a, item, w, partials, counters);
}

// --- the call -----------------------------------------------------------------------------------

struct Cutting {
    Item* items;  // null: only count
    int64_t count, partials, counters;
    int heads_at_once, rows;  // the most of an item
};

// Cuts one row; the same for every batch that it may be part of, but for `heads` an item.
INLINE void cut_row(const AttendArgs& a, int row, int heads, Cutting& to) {
    const int group = a.q_heads / a.kv_heads;
    const int begin = a.query_start[row], end = a.query_start[row + 1], tokens = end - begin;
    if (tokens <= 0) return;
    const int first_position = a.kv_len[row] - tokens;
    const int tile = TILE / group > 0 ? TILE / group : 1;
    const bool one_tile = tokens <= tile;
    if (!one_tile || tokens * group > FEW) heads = 1;
    // A causal row's last queries see most: begin with them.
    for (int last = end; last > begin; last -= tile) {
        const int from = last - tile > begin ? last - tile : begin;
        const int kv_end = first_position + last - begin;
        const int oldest = first_position + from - begin - a.window + 1;
        const int kv_begin = a.window && oldest > 0 ? oldest : 0;
        const int parts = one_tile ? (kv_end - kv_begin + SPLIT - 1) / SPLIT : 1;
        const int64_t size = parts > 1 ? Partial::floats(a, last - from) : 0;
        const int queries = padded((last - from) * group, MR);
        if (queries > to.rows) to.rows = queries;
        if (heads > to.heads_at_once) to.heads_at_once = heads;
        for (int head = 0; head < a.kv_heads; head += heads) {
            const int head_end = head + heads < a.kv_heads ? head + heads : a.kv_heads;
            for (int part = 0; part < parts; part++) {
                const int part_begin = kv_begin + part * SPLIT;
                const int part_end = part + 1 < parts ? part_begin + SPLIT : kv_end;
                if (to.items)
                    to.items[to.count] = {row, from, last, head, head_end, part_begin, part_end,
                                          part, parts, to.partials + part * size, to.counters};
                to.count++;
            }
            to.counters += parts > 1;
        }
        to.partials += parts * size;
    }
}

inline Cutting cut(const AttendArgs& a, int heads, Item* items) {
    Cutting to{items, 0, 0, 0, 1, MR};
    const int group = a.q_heads / a.kv_heads;
    // Rows with many queries come first: their items are the long ones.
    for (int few = 0; few < 2; few++)
        for (int row = 0; row < a.rows; row++)
            if (((a.query_start[row + 1] - a.query_start[row]) * group <= FEW) == few)
                cut_row(a, row, heads, to);
    return to;
}

inline thread_local Scratch shared_scratch, team_scratch;

// False where memory has run out.
template <class T>
bool attend(const AttendArgs& a) {
    int heads = a.kv_heads;
    Cutting cutting = cut(a, heads, nullptr);
    const int64_t wanted = int64_t(threads()) * ITEMS_PER_THREAD;
    if (threads() > 1 && cutting.count && cutting.count < wanted) {
        heads = int(a.kv_heads * cutting.count / wanted);
        heads = heads < 1 ? 1 : heads;
        cutting = cut(a, heads, nullptr);
    }
    const size_t partials_bytes = whole_lines(cutting.partials * sizeof(float));
    const size_t counters_bytes = whole_lines(cutting.counters * sizeof(int));
    char* memory =
        shared_scratch.reserve(partials_bytes + counters_bytes + cutting.count * sizeof(Item) + 64);
    const size_t bytes = whole_lines(Work::bytes(a, cutting.heads_at_once, cutting.rows));
    char* of_team = team_scratch.reserve(size_t(threads()) * bytes);
    if (!memory || !of_team) return false;
    float* partials = reinterpret_cast<float*>(memory);
    auto* counters = reinterpret_cast<std::atomic<int>*>(memory + partials_bytes);
    auto* items = reinterpret_cast<Item*>(memory + partials_bytes + counters_bytes);
    memset(static_cast<void*>(counters), 0, counters_bytes);
    cut(a, heads, items);

    one_by_one(cutting.count, true, [&](int64_t i, int64_t thread) {
        attend_item<T>(a, items[i], of_team + thread * bytes, partials, counters);
    });
    return true;
}

// --- storing what attention will read -----------------------------------------------------------

struct StoreArgs {
    const void *k, *v;  // [tokens, kv_heads, k_dim or v_dim], strided
    void *k_pool, *v_pool;
    const int64_t* slots;  // [tokens]
    int64_t k_token_stride, k_head_stride, v_token_stride, v_head_stride, tokens;
    int32_t kv_heads, k_dim, v_dim, is_bf16;
};

inline void store_tokens(const StoreArgs& a) {
    const int64_t size = a.is_bf16 ? 2 : 4;
    const auto copy = [&](const void* from, int64_t token_stride, int64_t head_stride, void* pool,
                          int dim, int64_t token) {
        auto* source = static_cast<const char*>(from) + token * token_stride * size;
        auto* target = static_cast<char*>(pool) + a.slots[token] * a.kv_heads * dim * size;
        if (head_stride == dim) {
            memcpy(target, source, a.kv_heads * dim * size);
            return;
        }
        for (int head = 0; head < a.kv_heads; head++)
            memcpy(target + head * dim * size, source + head * head_stride * size, dim * size);
    };
    const int64_t bytes = a.tokens * a.kv_heads * (a.k_dim + a.v_dim) * size;
    in_shares(a.tokens, bytes > 256 * 1024, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; token++) {
            copy(a.k, a.k_token_stride, a.k_head_stride, a.k_pool, a.k_dim, token);
            copy(a.v, a.v_token_stride, a.v_head_stride, a.v_pool, a.v_dim, token);
        }
    });
}

}  // namespace uellm
