// Attention over the segments of a packed sequence on x86 with AVX-512 VNNI, both of its products in int8, behind norm
// and rotation of queries and keys: the arithmetic of ref.py. VNNI multiplies 64 pairs of bytes where a float32
// instruction multiplies 16 numbers.
//
// One instruction adds four products into each of 16 lanes: unsigned bytes times signed ones. So the right side of a
// product is packed in panels of 64 columns, four bytes of a column side by side, and the left side is read as it lies.
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "packed.h"

namespace {

constexpr int ROWS = 16, VECTORS = KEYS / LANES;
constexpr int CHUNK = 4 * ROWS;  // queries that a thread takes at once
constexpr float LOG2_E = 1.44269504f, LOG2_255 = 7.99435344f;
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

// Sixteen rows of bytes, `stride` apart, times a packed panel of `groups`: out int32 [16, 64], added to `start` [64].
void multiply(const uint8_t* left, int stride, const int8_t* right, int groups, const int32_t* start, int32_t* out) {
    constexpr int TOGETHER = 4;
    for (int row = 0; row < ROWS; row += TOGETHER) {
        __m512i sum[TOGETHER][VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            const __m512i first = start ? _mm512_load_si512(start + v * LANES) : _mm512_setzero_si512();
            for (int r = 0; r < TOGETHER; ++r) sum[r][v] = first;
        }
        for (int g = 0; g < groups; ++g) {
            __m512i panel[VECTORS];
            for (int v = 0; v < VECTORS; ++v) panel[v] = _mm512_load_si512(right + g * PANEL + v * LANES * GROUP);
            for (int r = 0; r < TOGETHER; ++r) {
                int32_t four;
                std::memcpy(&four, left + (row + r) * stride + g * GROUP, GROUP);
                const __m512i wide = _mm512_set1_epi32(four);
                for (int v = 0; v < VECTORS; ++v) sum[r][v] = _mm512_dpbusd_epi32(sum[r][v], wide, panel[v]);
            }
        }
        for (int r = 0; r < TOGETHER; ++r)
            for (int v = 0; v < VECTORS; ++v) _mm512_store_si512(out + (row + r) * KEYS + v * LANES, sum[r][v]);
    }
}

// 2^x for finite x <= 8, within 5e-5 of it: a hundredth of a step of a weight.
__m512 power_of_two(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(x, whole);
    __m512 sum = _mm512_set1_ps(0.00961813f);
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(0.05550411f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(0.24022651f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(0.69314718f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.f));
    return _mm512_scalef_ps(sum, whole);
}

// Sixteen queries against one head of a segment, and what is known of their softmax so far.
struct Tile {
    alignas(64) uint8_t queries[ROWS * MOST_CHANNELS];
    alignas(64) uint8_t weights[ROWS * KEYS];
    alignas(64) int32_t product[ROWS * KEYS];
    alignas(64) float total[ROWS * MOST_CHANNELS];
    alignas(64) float scales[ROWS], most[ROWS], before[ROWS], now[ROWS], sums[ROWS];

    // `count` rows of a sequence from `first`, the head of `keys`.
    void begin(const Sequence& sequence, int64_t first, int count, const Heads& heads, const Packed& keys) {
        alignas(64) float row[MOST_CHANNELS];
        std::memset(queries, 128, sizeof queries);
        std::memset(total, 0, sizeof total);
        for (int r = 0; r < ROWS; ++r) {
            scales[r] = sums[r] = 0;
            most[r] = NOTHING;
            if (r >= count) continue;
            turn(sequence, &Stream::q, &Stream::q_weight, first + r, heads, keys.head, row);
            const float high = largest(row, heads.channels);
            const __m512 steps = steps_of(high);
            for (int c = 0; c < heads.channels; c += LANES) {
                const __mmask16 lanes = first_lanes(heads.channels - c);
                const __m512i wide = _mm512_add_epi32(rounded(row + c, lanes, steps), _mm512_set1_epi32(128));
                _mm_mask_storeu_epi8(queries + r * heads.channels + c, lanes, _mm512_cvtepi32_epi8(wide));
            }
            scales[r] = high / LARGEST * LOG2_E / std::sqrt(float(heads.channels));
        }
    }

    // Scores of a block of keys to weights in bytes, 255 for the largest of the block, and those into the sums.
    void weigh(const Packed& keys, int64_t block) {
        alignas(64) float high[ROWS], added[ROWS];
        __mmask16 there[VECTORS];
        __m512 key_scales[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            const int64_t first = block * KEYS + v * LANES;
            there[v] = first_lanes(keys.rows - first);
            key_scales[v] = _mm512_load_ps(keys.key_scales.get() + first);
        }
        for (int r = 0; r < ROWS; ++r) {
            const __m512 scale = _mm512_set1_ps(scales[r]);
            __m512 score[VECTORS], top = _mm512_set1_ps(NOTHING);
            for (int v = 0; v < VECTORS; ++v) {
                const __m512 whole = _mm512_cvtepi32_ps(_mm512_load_si512(product + r * KEYS + v * LANES));
                score[v] = _mm512_mul_ps(whole, _mm512_mul_ps(key_scales[v], scale));
                top = _mm512_mask_max_ps(top, there[v], top, score[v]);
            }
            high[r] = _mm512_reduce_max_ps(top);
            const __m512 shift = _mm512_set1_ps(LOG2_255 - high[r]);
            __m512i sum = _mm512_setzero_si512();
            for (int v = 0; v < VECTORS; ++v) {
                const __m512 weight = power_of_two(_mm512_add_ps(score[v], shift));
                const __m512i whole = _mm512_maskz_cvtps_epi32(there[v], weight);
                sum = _mm512_add_epi32(sum, whole);
                __m128i* to = reinterpret_cast<__m128i*>(weights + r * KEYS + v * LANES);
                _mm_store_si128(to, _mm512_cvtusepi32_epi8(whole));
            }
            added[r] = float(_mm512_reduce_add_epi32(sum));
        }
        const __m512 old = _mm512_load_ps(most), own = _mm512_load_ps(high), top = _mm512_max_ps(old, own);
        // Before the first block nothing was seen.
        const __mmask16 seen = _mm512_cmp_ps_mask(old, _mm512_set1_ps(NOTHING), _CMP_GT_OQ);
        const __m512 kept = _mm512_maskz_mov_ps(seen, power_of_two(_mm512_sub_ps(old, top)));
        const __m512 fresh = power_of_two(_mm512_sub_ps(own, top));
        _mm512_store_ps(before, kept);
        _mm512_store_ps(now, fresh);
        _mm512_store_ps(most, top);
        const __m512 sum = _mm512_mul_ps(_mm512_load_ps(sums), kept);
        _mm512_store_ps(sums, _mm512_fmadd_ps(_mm512_load_ps(added), fresh, sum));
    }

    // Take a block's weighted values, `product`, into one panel of the totals.
    void add_values(int panel) {
        for (int r = 0; r < ROWS; ++r) {
            float* to = total + r * MOST_CHANNELS + panel * KEYS;
            for (int v = 0; v < VECTORS; ++v) {
                const __m512 whole = _mm512_cvtepi32_ps(_mm512_load_si512(product + r * KEYS + v * LANES));
                const __m512 old = _mm512_mul_ps(_mm512_load_ps(to + v * LANES), _mm512_set1_ps(before[r]));
                _mm512_store_ps(to + v * LANES, _mm512_fmadd_ps(whole, _mm512_set1_ps(now[r]), old));
            }
        }
    }

    void end(const Sequence& sequence, int64_t first, int count, const Heads& heads, const Packed& keys,
             float* out) const {
        for (int r = 0; r < count; ++r) {
            float* to = out + sequence.place(first + r) * heads.row() + keys.head * heads.channels;
            for (int c = 0; c < heads.channels; c += LANES) {
                const __m512 by = _mm512_div_ps(_mm512_load_ps(keys.value_scales.get() + c), _mm512_set1_ps(sums[r]));
                _mm512_mask_storeu_ps(to + c, first_lanes(heads.channels - c),
                                      _mm512_mul_ps(_mm512_load_ps(total + r * MOST_CHANNELS + c), by));
            }
        }
    }
};

// Queries `from` to `from + CHUNK` of a segment.
void attend(const Sequence& sequence, float* out, const Heads& heads, const Packed& keys, int64_t from) {
    Tile tile;
    for (int64_t r = from; r < std::min(from + CHUNK, keys.rows); r += ROWS) {
        const int count = int(std::min<int64_t>(ROWS, keys.rows - r));
        tile.begin(sequence, keys.first + r, count, heads, keys);
        for (int64_t block = 0; block < keys.blocks(); ++block) {
            multiply(tile.queries, heads.channels, keys.keys.get() + block * heads.groups() * PANEL, heads.groups(),
                     keys.starts.get() + block * KEYS, tile.product);
            tile.weigh(keys, block);
            for (int panel = 0; panel < heads.panels(); ++panel) {
                const int64_t number = (block * heads.panels() + panel) * (KEYS / GROUP);
                multiply(tile.weights, KEYS, keys.values.get() + number * PANEL, KEYS / GROUP, nullptr, tile.product);
                tile.add_values(panel);
            }
        }
        tile.end(sequence, keys.first + r, count, heads, keys, out);
    }
}

// Call `work` with 0 to count - 1, in any order.
template <class Work>
void spread(int threads, int64_t count, const Work& work) {
    std::atomic<int64_t> next{0};
    const auto loop = [&] {
        for (int64_t i = next++; i < count; i = next++) work(i);
    };
    std::vector<std::thread> others;
    try {
        for (int i = 1; i < std::min<int64_t>(threads, count); ++i) others.emplace_back(loop);
    } catch (const std::system_error&) {
        // Fewer threads than asked for compute the same.
    }
    loop();
    for (std::thread& other : others) other.join();
}

}  // namespace

// rows: for each stream q, k, v float32 [rows, heads, channels] and the weights [channels] of two norms; lengths: its
// rows; cos, sin [rows of all, channels / 2]; order: see `Sequence`. channels a multiple of 4 and at most 256. offsets
// [segments + 1] of the sequence; its last segment is padding and its rows become zero. out [rows of all, heads,
// channels], as the streams lie. Returns 0; 1 where there is no memory, 2 for an order that leaves the streams: then
// `out` is not written.
extern "C" int vino_int8_attention(const float* const* rows, const int64_t* lengths, int streams, const float* cos,
                                   const float* sin, const int64_t* order, const int32_t* offsets, int segments,
                                   int heads_count, int channels, int threads, float* out) try {
    const Heads heads{heads_count, channels};
    std::vector<Stream> found;
    int64_t length = 0;
    for (int i = 0; i < streams; length += lengths[i++], rows += 5)
        found.push_back({rows[0], rows[1], rows[2], rows[3], rows[4], lengths[i]});
    const Sequence sequence{found.data(), cos, sin, order};
    for (int64_t r = 0; order && r < length; ++r)
        if (order[r] < 0 || order[r] >= length) return 2;
    std::vector<Packed> packed;
    std::vector<std::pair<int64_t, int64_t>> chunks;  // number in `packed`, first query
    for (int s = 0; s + 1 < segments; ++s)
        for (int head = 0; head < heads.count && offsets[s] < offsets[s + 1]; ++head) {
            packed.push_back(room(offsets[s], offsets[s + 1] - offsets[s], head, heads));
            for (int64_t r = 0; r < packed.back().rows; r += CHUNK) chunks.emplace_back(packed.size() - 1, r);
        }
    spread(threads, packed.size(), [&](int64_t i) {
        pack_keys(sequence, heads, packed[i]);
        pack_values(sequence, heads, packed[i]);
    });
    spread(threads, chunks.size(),
           [&](int64_t i) { attend(sequence, out, heads, packed[chunks[i].first], chunks[i].second); });
    for (int64_t r = offsets[segments - 1]; r < offsets[segments]; ++r)
        std::memset(out + sequence.place(r) * heads.row(), 0, sizeof(float) * heads.row());
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
