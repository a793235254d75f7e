// Causal attention over the paged cache, read where it lies.
//
// keys, values [slots, kv_heads, head_dim]. Softmax is online over blocks of positions.
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
#pragma once

#include <limits>
#include <vector>

#include "gemm.h"

namespace mix {

// Consecutive tokens of one request: flat tokens [first, first + length) at positions from start.
struct Row {
  int32_t first;
  int32_t length;
  int32_t start;
  int32_t table;  // where its blocks begin in the step's block table
};

struct Paging {
  const int32_t* blocks;
  int32_t block_size;

  size_t slot(const Row& row, int position) const {
    return size_t(blocks[row.table + position / block_size]) * block_size + position % block_size;
  }
};

template <class T>
struct HeadCache {
  const T* keys;  // of one kv head, slot 0
  const T* values;
  size_t stride;  // elements from slot to slot
  int head_dim;
};

constexpr int CHUNK = 64;    // positions of one softmax block when rows attend one by one
constexpr int SPLIT = 512;   // positions after which another task goes on, whatever the batch
constexpr int MANY = 96;     // query rows of one task of a longer chunk
constexpr int MAX_HEADS = 64;  // query heads that share one kv head

// Softmax over what was seen so far: weights are relative to e^top.
struct Partial {
  float top = -std::numeric_limits<float>::infinity();
  float norm = 0;
};

// scores [count] -> e^(score - top); returns by how much older sums shrink.
inline float soften(float* scores, int count, Partial& seen) {
  for (int i = count; i < ceil_div(count, LANES) * LANES; i++)
    scores[i] = -std::numeric_limits<float>::infinity();
  F16 top = splat(seen.top);
  for (int i = 0; i < count; i += LANES) top = larger(top, load(scores + i));
  const float new_top = largest(top);
  if (new_top == -std::numeric_limits<float>::infinity()) {
    for (int i = 0; i < count; i += LANES) store(scores + i, F16{});
    return 1.0f;
  }
  F16 norm = {};
  for (int i = 0; i < count; i += LANES) {
    const F16 p = exponential(load(scores + i) - new_top);
    store(scores + i, p);
    norm += p;
  }
  const float shrink = std::exp(seen.top - new_top);
  seen.top = new_top;
  seen.norm = seen.norm * shrink + sum(norm);
  return shrink;
}

// Query heads of one token over positions [begin, end): q [heads, head_dim] scaled, one kv head.
template <class T>
struct Single {
  // out[h][d] += p[h][i] values[i][d] for HEADS heads and 64 dimensions at most.
  template <int HEADS>
  static void add_values(const T* const* rows, int count, const float* p, int blocks, float* out,
                         size_t ldo) {
    F16 sums[HEADS][4];
    for (int h = 0; h < HEADS; h++)
      for (int b = 0; b < 4; b++) sums[h][b] = b < blocks ? load(out + h * ldo + b * LANES) : F16{};
    for (int i = 0; i < count; i++) {
      F16 v[4];
      for (int b = 0; b < 4; b++) v[b] = b < blocks ? load(rows[i] + b * LANES) : F16{};
      for (int h = 0; h < HEADS; h++)
        for (int b = 0; b < 4; b++) sums[h][b] += p[h * CHUNK + i] * v[b];
    }
    for (int h = 0; h < HEADS; h++)
      for (int b = 0; b < 4; b++)
        if (b < blocks) store(out + h * ldo + b * LANES, sums[h][b]);
  }

  static void values(const T* const* rows, int count, const float* p, int heads, int dim,
                     float* out) {
    for (int d = 0; d < dim; d += 4 * LANES) {
      const T* shifted[CHUNK];
      for (int i = 0; i < count; i++) shifted[i] = rows[i] + d;
      const int blocks = std::min(4, (dim - d) / LANES);
      int h = 0;
      for (; h + 3 <= heads; h += 3)
        add_values<3>(shifted, count, p + h * CHUNK, blocks, out + h * dim + d, dim);
      if (heads - h == 2)
        add_values<2>(shifted, count, p + h * CHUNK, blocks, out + h * dim + d, dim);
      else if (heads - h == 1)
        add_values<1>(shifted, count, p + h * CHUNK, blocks, out + h * dim + d, dim);
    }
  }

  static void attend(const HeadCache<T>& cache, const Paging& paging, const Row& row, int begin,
                     int end, const float* q, int heads, Partial* seen, float* out) {
    alignas(64) float scores[MAX_HEADS * CHUNK];
    const int dim = cache.head_dim;
    std::fill(out, out + heads * dim, 0.0f);
    for (int block = begin; block < end; block += CHUNK) {
      const int count = std::min(CHUNK, end - block);
      const T* rows[CHUNK];
      for (int i = 0; i < count; i++) {
        const size_t offset = paging.slot(row, block + i) * cache.stride;
        const T* key = cache.keys + offset;
        rows[i] = cache.values + offset;
        for (int h = 0; h < heads; h++) {
          F16 dot = {};
          for (int d = 0; d < dim; d += LANES) dot += load(q + h * dim + d) * load(key + d);
          scores[h * CHUNK + i] = sum(dot);
        }
      }
      for (int h = 0; h < heads; h++) {
        const float shrink = soften(scores + h * CHUNK, count, seen[h]);
        if (shrink != 1.0f)
          for (int d = 0; d < dim; d += LANES)
            store(out + h * dim + d, load(out + h * dim + d) * shrink);
      }
      values(rows, count, scores, heads, dim, out);
    }
  }
};

// Many query rows over one kv head: products by the packed kernel, `PANEL` positions at a time.
template <class T>
class Many {
 public:
  // q [rows, head_dim] in T, scaled; own[i] the position of row i. Result in `out`.
  void attend(const HeadCache<T>& cache, const Paging& paging, const Row& row, int window,
              const T* q, const int* own, int rows) {
    const int dim = cache.head_dim;
    reserve(dim);
    std::fill(out.begin(), out.begin() + size_t(rows) * dim, 0.0f);
    for (int r = 0; r < rows; r++) seen[r] = Partial{};
    const int end = own[rows - 1] + 1;
    for (int block = window ? std::max(0, own[0] + 1 - window) : 0; block < end; block += PANEL) {
      const int count = std::min(PANEL, end - block);
      pack(cache, paging, row, block, count);
      multiply_panel(rows, q, dim, keys_.data(), PANEL_BLOCKS, dim, scores_.data(), PANEL, false);
      weigh(rows, block, count, window, own, dim);
      for (int d = 0; d < dim; d += PANEL)
        multiply_panel(rows, weights_.data(), PANEL, values_.data() + size_t(d) * PANEL,
                       std::min(PANEL_BLOCKS, (dim - d) / LANES), PANEL, out.data() + d, dim, true);
    }
  }

  std::vector<float> out;
  Partial seen[MANY];

 private:
  void reserve(int dim) {
    keys_.resize(size_t(PANEL) * dim);
    values_.resize(size_t(PANEL) * dim);
    scores_.resize(size_t(MANY) * PANEL);
    weights_.resize(size_t(MANY) * PANEL);
    out.resize(size_t(MANY) * dim);
  }

  void pack(const HeadCache<T>& cache, const Paging& paging, const Row& row, int block, int count) {
    constexpr int G = Dot<T>::GROUP;
    const int dim = cache.head_dim;
    std::fill(keys_.begin(), keys_.end(), T{});
    std::fill(values_.begin(), values_.end(), T{});
    for (int i = 0; i < count; i++) {
      const size_t offset = paging.slot(row, block + i) * cache.stride;
      const T* key = cache.keys + offset;
      for (int d = 0; d < dim; d += G)
        std::memcpy(&keys_[size_t(d) * PANEL + i * G], key + d, G * sizeof(T));
      const T* value = cache.values + offset;
      for (int d = 0; d < dim; d += PANEL) {
        const int wide = std::min(PANEL, dim - d);
        T* panel = &values_[size_t(d) * PANEL + size_t(i / G) * wide * G + i % G];
        for (int j = 0; j < wide; j++) panel[j * G] = value[d + j];
      }
    }
  }

  // Scores -> weights in T; sums of earlier blocks shrink to the new top.
  void weigh(int rows, int block, int count, int window, const int* own, int dim) {
    const float hidden = -std::numeric_limits<float>::infinity();
    for (int r = 0; r < rows; r++) {
      float* scores = &scores_[size_t(r) * PANEL];
      const int last = std::min(count, own[r] + 1 - block);
      const int first = window ? std::max(0, own[r] + 1 - window - block) : 0;
      for (int i = std::max(0, last); i < PANEL; i++) scores[i] = hidden;
      for (int i = 0; i < std::min(first, PANEL); i++) scores[i] = hidden;
      const float shrink = soften(scores, PANEL, seen[r]);
      for (int i = 0; i < PANEL; i += LANES)
        store(&weights_[size_t(r) * PANEL + i], load(scores + i));
      if (shrink != 1.0f)
        for (int d = 0; d < dim; d += LANES) {
          float* o = &out[size_t(r) * dim + d];
          store(o, load(o) * shrink);
        }
    }
  }

  std::vector<T> keys_, values_, weights_;
  std::vector<float> scores_;
};

}  // namespace mix
