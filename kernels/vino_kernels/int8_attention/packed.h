// Where the rows of a packed sequence lie; queries and keys normed and turned; all in steps of one byte, keys and
// values in the panels that cpu.cpp multiplies.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace {

constexpr int KEYS = 64, LANES = 16, GROUP = 4;
constexpr int PANEL = KEYS * GROUP;  // bytes of one group of four for 64 columns
constexpr int MOST_CHANNELS = 256;
constexpr float LARGEST = 127.f, EPSILON = 1e-6f;

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;

// `count` is a multiple of 64 and not 0.
template <class T>
Buffer<T> allocate(int64_t count) {
    void* memory = std::aligned_alloc(64, count * sizeof(T));
    if (!memory) throw std::bad_alloc();
    return Buffer<T>(static_cast<T*>(memory));
}

struct Heads {
    int count, channels;
    int64_t row() const { return int64_t(count) * channels; }
    int groups() const { return channels / GROUP; }
    int panels() const { return (channels + KEYS - 1) / KEYS; }
};

// Rows with projections of their own: float32 [rows, heads, channels], and a weight [channels] for each norm.
struct Stream {
    const float *q, *k, *v, *q_weight, *k_weight;
    int64_t rows;
};

// The rows of all streams behind each other, in the order in which branches follow each other.
struct Sequence {
    const Stream* streams;
    const float *cos, *sin;  // [rows of all streams, channels / 2]
    const int64_t* order;    // where a row of the sequence lies in the streams; null: there, too

    int64_t place(int64_t row) const { return order ? order[row] : row; }

    // The stream of a place, which becomes the row in it.
    const Stream& find(int64_t& place) const {
        const Stream* stream = streams;
        while (place >= stream->rows) place -= (stream++)->rows;
        return *stream;
    }

    // One head of q, k or v in a row of the sequence.
    const float* at(const float* Stream::*rows, int64_t row, const Heads& heads, int head) const {
        int64_t own = place(row);
        const Stream& stream = find(own);
        return stream.*rows + own * heads.row() + head * heads.channels;
    }
};

// Keys and values of one head of one segment.
struct Packed {
    int64_t first, rows;  // of the sequence
    int head;
    Buffer<int8_t> keys, values;
    Buffer<float> key_scales, value_scales;
    Buffer<int32_t> starts;  // what a query's offset of 128 adds to a score, to be taken away
    int64_t blocks() const { return (rows + KEYS - 1) / KEYS; }
};

__mmask16 first_lanes(int64_t count) { return __mmask16((1u << std::clamp<int64_t>(count, 0, LANES)) - 1); }

float largest(const float* row, int channels) {
    __m512 most = _mm512_setzero_ps();
    for (int c = 0; c < channels; c += LANES)
        most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(first_lanes(channels - c), row + c)));
    return _mm512_reduce_max_ps(most);
}

__m512 steps_of(float most) { return _mm512_set1_ps(most > 0 ? LARGEST / most : 0.f); }

// Sixteen numbers in steps, as int32; zero beyond the mask.
__m512i rounded(const float* from, __mmask16 lanes, __m512 steps) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, from), steps));
}

// One head of q or k in a row of the sequence: over its root mean square, times the weights, pairs of channels turned.
void turn(const Sequence& sequence, const float* Stream::*rows, const float* Stream::*weights, int64_t at,
          const Heads& heads, int head, float* out) {
    const int64_t place = sequence.place(at);
    int64_t own = place;
    const float *row = sequence.at(rows, at, heads, head), *weight = sequence.find(own).*weights;
    const int channels = heads.channels;
    __m512 squares = _mm512_setzero_ps();
    for (int c = 0; c < channels; c += LANES) {
        const __m512 x = _mm512_maskz_loadu_ps(first_lanes(channels - c), row + c);
        squares = _mm512_fmadd_ps(x, x, squares);
    }
    const __m512 scale = _mm512_set1_ps(1.f / std::sqrt(_mm512_reduce_add_ps(squares) / channels + EPSILON));
    const __m512i pairs = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    for (int c = 0; c < channels; c += LANES) {
        const __mmask16 lanes = first_lanes(channels - c), half = first_lanes((channels - c) / 2) & 255;
        const int64_t angle = (place * channels + c) / 2;
        const __m512 cos = _mm512_permutexvar_ps(pairs, _mm512_maskz_loadu_ps(half, sequence.cos + angle));
        const __m512 sin = _mm512_permutexvar_ps(pairs, _mm512_maskz_loadu_ps(half, sequence.sin + angle));
        const __m512 normed = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, row + c), scale);
        const __m512 x = _mm512_mul_ps(normed, _mm512_maskz_loadu_ps(lanes, weight + c));
        // Even lanes x cos - y sin, odd ones y cos + x sin.
        const __m512 across = _mm512_mul_ps(_mm512_permute_ps(x, 0xB1), sin);
        _mm512_mask_storeu_ps(out + c, lanes, _mm512_fmaddsub_ps(x, cos, across));
    }
}

void pack_keys(const Sequence& sequence, const Heads& heads, Packed& to) {
    alignas(64) float row[MOST_CHANNELS];
    for (int64_t r = 0; r < to.blocks() * KEYS; ++r) {
        int8_t* column = to.keys.get() + r / KEYS * heads.groups() * PANEL + r % KEYS * GROUP;
        const bool there = r < to.rows;
        if (there) turn(sequence, &Stream::k, &Stream::k_weight, to.first + r, heads, to.head, row);
        const float most = there ? largest(row, heads.channels) : 0.f;
        const __m512 steps = steps_of(most);
        __m512i sum = _mm512_setzero_si512();
        for (int c = 0; c < heads.channels; c += LANES) {
            const __mmask16 lanes = there ? first_lanes(heads.channels - c) : 0;
            const __m512i wide = rounded(row + c, lanes, steps);
            sum = _mm512_add_epi32(sum, wide);
            alignas(16) int32_t fours[LANES / GROUP];
            _mm_store_si128(reinterpret_cast<__m128i*>(fours), _mm512_cvtsepi32_epi8(wide));
            for (int g = 0; g < std::min(LANES, heads.channels - c) / GROUP; ++g)
                std::memcpy(column + (c / GROUP + g) * PANEL, fours + g, GROUP);
        }
        to.key_scales[r] = most / LARGEST;
        to.starts[r] = -128 * _mm512_reduce_add_epi32(sum);
    }
}

void pack_values(const Sequence& sequence, const Heads& heads, Packed& to) {
    const auto values = [&](int64_t r) { return sequence.at(&Stream::v, to.first + r, heads, to.head); };
    for (int c = 0; c < heads.panels() * KEYS; c += LANES) {
        const __mmask16 lanes = first_lanes(heads.channels - c);
        __m512 most = _mm512_setzero_ps();
        for (int64_t r = 0; r < to.rows; ++r)
            most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes, values(r) + c)));
        _mm512_storeu_ps(to.value_scales.get() + c, _mm512_div_ps(most, _mm512_set1_ps(LARGEST)));
        const __mmask16 any = _mm512_cmp_ps_mask(most, _mm512_setzero_ps(), _CMP_GT_OQ);
        const __m512 steps = _mm512_maskz_div_ps(any, _mm512_set1_ps(LARGEST), most);
        for (int64_t r = 0; r < to.blocks() * KEYS; r += GROUP) {
            __m512i four = _mm512_setzero_si512();
            for (int i = 0; i < GROUP; ++i) {
                if (r + i >= to.rows) break;
                const __m512i byte = _mm512_and_si512(rounded(values(r + i) + c, lanes, steps), _mm512_set1_epi32(255));
                four = _mm512_or_si512(four, _mm512_slli_epi32(byte, 8 * i));
            }
            const int64_t panel = (r / KEYS * heads.panels() + c / KEYS) * (KEYS / GROUP) + r % KEYS / GROUP;
            _mm512_store_si512(to.values.get() + panel * PANEL + c % KEYS * GROUP, four);
        }
    }
}

// Room for what the two functions above write.
Packed room(int64_t first, int64_t rows, int head, const Heads& heads) {
    const int64_t padded = (rows + KEYS - 1) / KEYS * KEYS;
    const int64_t columns = int64_t(heads.panels()) * KEYS;
    return {first, rows, head, allocate<int8_t>(padded * heads.channels), allocate<int8_t>(padded * columns),
            allocate<float>(padded), allocate<float>(columns), allocate<int32_t>(padded)};
}

}  // namespace
