// Queries, keys and values in steps of one byte, keys and values in the panels that cpu.cpp multiplies.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace {

constexpr int KEYS = 64, LANES = 16, GROUP = 4;
constexpr int PANEL = KEYS * GROUP;  // bytes of one group of four for 64 columns
constexpr float LARGEST = 127.f;

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

void pack_keys(const float* rows, const Heads& heads, Packed& to) {
    for (int64_t r = 0; r < to.blocks() * KEYS; ++r) {
        int8_t* column = to.keys.get() + r / KEYS * heads.groups() * PANEL + r % KEYS * GROUP;
        const bool there = r < to.rows;
        const float* row = rows + r * heads.row();
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

void pack_values(const float* rows, const Heads& heads, Packed& to) {
    const int64_t step = heads.row();
    for (int c = 0; c < heads.panels() * KEYS; c += LANES) {
        const __mmask16 lanes = first_lanes(heads.channels - c);
        __m512 most = _mm512_setzero_ps();
        for (int64_t r = 0; r < to.rows; ++r)
            most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes, rows + r * step + c)));
        _mm512_storeu_ps(to.value_scales.get() + c, _mm512_div_ps(most, _mm512_set1_ps(LARGEST)));
        const __mmask16 any = _mm512_cmp_ps_mask(most, _mm512_setzero_ps(), _CMP_GT_OQ);
        const __m512 steps = _mm512_maskz_div_ps(any, _mm512_set1_ps(LARGEST), most);
        for (int64_t r = 0; r < to.blocks() * KEYS; r += GROUP) {
            __m512i four = _mm512_setzero_si512();
            for (int i = 0; i < GROUP; ++i) {
                const __m512i one = rounded(rows + (r + i) * step + c, r + i < to.rows ? lanes : 0, steps);
                const __m512i byte = _mm512_and_si512(one, _mm512_set1_epi32(255));
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
