// Causal attention over the paged cache, read where it lies.
//
// keys, values [slots, kv_heads, head_dim]. Softmax is online over blocks of positions.
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
#pragma once

#include "products.h"

namespace mix::MIX_ISA {

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

// Neighbouring kv heads of one layer.
template <class T>
struct HeadCache {
  const T* keys;  // of the first of them, slot 0
  const T* values;
  size_t stride;  // elements from slot to slot
  int heads;
  int head_dim;
};

// Positions [begin, end) of a request.
struct Stretch {
  const Row* row;
  int begin;
  int end;
};

constexpr int CHUNK = 16;    // positions of one softmax block when rows attend one by one
constexpr int SPLIT = 512;   // positions after which another task goes on, whatever the batch
constexpr int MANY = 96;     // query rows of one task of a longer chunk
constexpr int SEEN = 48;     // positions of one softmax block when many rows attend
static_assert(SEEN % PANEL == 0 && CHUNK % LANES == 0, "blocks are whole panels and vectors");
constexpr int MAX_HEADS = 64;    // query heads that share one kv head

// Softmax over what was seen so far: weights are relative to e^top.
struct Partial {
  float top = -INFINITE;
  float norm = 0;
};

// scores [count] -> e^(score - top); returns by how much older sums shrink.
inline float soften(float* scores, int count, Partial& seen) {
  for (int i = count; i < ceil_div(count, LANES) * LANES; i++)
    scores[i] = -INFINITE;
  Floats top = splat(seen.top);
  for (int i = 0; i < count; i += LANES) top = larger(top, load(scores + i));
  const float new_top = largest(top);
  if (new_top == -INFINITE) {  // nothing is seen, or what `larger` may pass over: NaN
    Floats total = {};
    for (int i = 0; i < count; i += LANES) total += load(scores + i);
    const float all = sum(total), weight = all == all ? 0.0f : all;
    for (int i = 0; i < count; i += LANES) store(scores + i, splat(weight));
    seen.norm += weight;
    return 1.0f;
  }
  Floats norm = {};
  for (int i = 0; i < count; i += LANES) {
    const Floats p = exponential(load(scores + i) - new_top);
    store(scores + i, p);
    norm += p;
  }
  const float shrink = std::exp(seen.top - new_top);
  seen.top = new_top;
  seen.norm = seen.norm * shrink + sum(norm);
  return shrink;
}

// One token, for every kv head of `cache` the query heads that share it.
template <class T>
class Single {
 public:
  typedef Read<T> X;

  // q [kv heads, group, head_dim] scaled, over a stretch: sums of weighted values in `out`, as q.
  // Each chunk is brought near while the one before it is computed, the last one's follower being
  // the first of `next`, which this thread will probably be given next.
  static void attend(const HeadCache<T>& cache, const Paging& paging, Stretch stretch, Stretch next,
                     const X* q, int group, Partial* seen, float* out) {
    size_t here[CHUNK], there[CHUNK];
    const int dim = cache.head_dim, width = group * dim;
    std::fill(out, out + cache.heads * width, 0.0f);
    locate(cache, paging, stretch, here);
    while (stretch.begin < stretch.end) {
      const int count = std::min(CHUNK, stretch.end - stretch.begin);
      stretch.begin += count;
      locate(cache, paging, stretch.begin < stretch.end ? stretch : next, there);
      for (int head = 0; head < cache.heads; head++)
        attend_chunk({cache.keys + head * dim, here, there},
                     {cache.values + head * dim, here, there}, count, q + head * width, group, dim,
                     seen + head * group, out + head * width);
      std::copy(there, there + CHUNK, here);
    }
  }

 private:
  // Vectors of the cache; whoever reads one also fetches its follower.
  struct Listed {
    const T* first;
    const size_t* here;
    const size_t* there;
    const T* operator()(int row) const {
      __builtin_prefetch(first + there[row], 0, 3);
      return first + here[row];
    }
    Listed from(int element) const { return {first + element, here, there}; }
  };

  // The same when their followers are on their way.
  struct Near {
    const T* first;
    const size_t* here;
    const T* operator()(int row) const { return first + here[row]; }
    Near from(int element) const { return {first + element, here}; }
  };

  // Vectors in the format that products read, widened once for all heads.
  struct Widened {
    const X* first;
    int dim;
    const X* operator()(int row) const { return first + row * dim; }
    Widened from(int element) const { return {first + element, dim}; }
  };

  // Where the first positions of a stretch lie; past its end, where its last one does.
  static void locate(const HeadCache<T>& cache, const Paging& paging, const Stretch& stretch,
                     size_t* offsets) {
    for (int i = 0; i < CHUNK; i++)
      offsets[i] =
          paging.slot(*stretch.row, std::min(stretch.begin + i, stretch.end - 1)) * cache.stride;
  }

  static void attend_chunk(const Listed& keys, const Listed& values, int count, const X* q,
                           int heads, int dim, Partial* seen, float* out) {
    alignas(64) float scores[MAX_HEADS * CHUNK];
    alignas(64) X weights[MAX_HEADS * CHUNK];
    score_heads(q, keys, count, heads, dim, scores);
    for (int h = 0; h < heads; h++) {
      float* own = scores + h * CHUNK;
      const float shrink = soften(own, count, seen[h]);
      for (int i = 0; i < count; i += LANES) store(weights + h * CHUNK + i, load(own + i));
      if (shrink != 1.0f)
        for (int d = 0; d < dim; d += LANES)
          store(out + h * dim + d, load(out + h * dim + d) * shrink);
    }
    weigh(values, count, weights, heads, dim, out);
  }

  // scores[h] = q[h] keys, CHUNK apart; keys past `count` are read and mean nothing.
  static void score_heads(const X* q, const Listed& keys, int count, int heads, int dim,
                          float* scores) {
    if constexpr (std::is_same_v<T, X>) {
      score(q, keys, count, dim, scores);
      for (int h = 1; h < heads; h++)
        score(q + h * dim, Near{keys.first, keys.here}, count, dim, scores + h * CHUNK);
    } else {
      static thread_local std::vector<X> wide;
      wide.resize(size_t(CHUNK) * dim);
      for (int i = 0; i < ceil_div(count, LANES) * LANES; i++)
        for (int d = 0; d < dim; d += LANES)
          store(&wide[size_t(i) * dim + d], load(keys.from(d)(i)));
      for (int h = 0; h < heads; h++)
        score(q + h * dim, Widened{wide.data(), dim}, count, dim, scores + h * CHUNK);
    }
  }

  template <class Keys>
  static void score(const X* q, const Keys& keys, int count, int dim, float* scores) {
    const int parts = dim / Inner<X>::WIDTH, rest = dim % Inner<X>::WIDTH;
#if MIX_LANES == 16  // a query stays in registers
    if (rest == 0 && parts == 1) return score_parts<1>(q, keys, count, scores);
    if (rest == 0 && parts == 2) return score_parts<2>(q, keys, count, scores);
    if (rest == 0 && parts == 4) return score_parts<4>(q, keys, count, scores);
    if (rest == 0 && parts == 8) return score_parts<8>(q, keys, count, scores);
#else
    if (rest == 0) return score_keys(q, keys, count, parts, scores);
#endif
    for (int i = 0; i < count; i++) {
      Floats dot = {};
      for (int d = 0; d < dim; d += Inner<X>::WIDTH)
        dot = Inner<X>::add(dot, Inner<X>::read_some(q + d, dim - d),
                            Inner<X>::read_some(keys(i) + d, dim - d));
      scores[i] = sum(dot);
    }
  }

  template <int PARTS, class Keys>
  static void score_parts(const X* q, const Keys& keys, int count, float* scores) {
    typename Inner<X>::Vector in[PARTS];
#pragma GCC unroll 8
    for (int p = 0; p < PARTS; p++) in[p] = Inner<X>::read(q + p * Inner<X>::WIDTH);
    for (int i = 0; i < count; i += LANES) {
      Floats dots[LANES] = {};
#pragma GCC unroll 16
      for (int j = 0; j < LANES; j++)
#pragma GCC unroll 8
        for (int p = 0; p < PARTS; p++)
          dots[j] = Inner<X>::add(dots[j], in[p],
                                  Inner<X>::read(keys.from(p * Inner<X>::WIDTH)(i + j)));
      store(scores + i, sum_each(dots));
    }
  }

  // As many keys as a vector has lanes, each part of the query over all of them.
  template <class Keys>
  static void score_keys(const X* q, const Keys& keys, int count, int parts, float* scores) {
    for (int i = 0; i < count; i += LANES) {
      Floats dots[LANES] = {};
      for (int p = 0; p < parts; p++) {
        const typename Inner<X>::Vector in = Inner<X>::read(q + p * Inner<X>::WIDTH);
#pragma GCC unroll 16
        for (int j = 0; j < LANES; j++)
          dots[j] = Inner<X>::add(dots[j], in,
                                  Inner<X>::read(keys.from(p * Inner<X>::WIDTH)(i + j)));
      }
      store(scores + i, sum_each(dots));
    }
  }

  // out[h] += weights[h] values
  static void weigh(const Listed& values, int count, const X* weights, int heads, int dim,
                    float* out) {
    for (int h = 0; h < heads; h += EXPAND_TOKENS) {
      const int some = std::min(EXPAND_TOKENS, heads - h), wide = expand_width(some);
      for (int d = 0; d < dim; d += wide) {
        const X* w[EXPAND_TOKENS];
        float* target[EXPAND_TOKENS];
        for (int i = 0; i < some; i++) {
          w[i] = weights + (h + i) * CHUNK;
          target[i] = out + (h + i) * dim + d;
        }
        expand_tokens<T>(some, w, values.from(d), count, std::min(wide, dim - d), target);
      }
    }
  }
};

// Many query rows over one kv head: products by the packed kernel, `SEEN` positions at a time, in
// the format X that products read.
template <class T>
class Many {
 public:
  typedef Read<T> X;

  // q [rows, head_dim], scaled; own[i] the position of row i. Result in `out`.
  void attend(const HeadCache<T>& cache, const Paging& paging, const Row& row, int window,
              const X* q, const int* own, int rows) {
    const int dim = cache.head_dim;
    reserve(dim);
    std::fill(out.begin(), out.begin() + size_t(rows) * dim, 0.0f);
    for (int r = 0; r < rows; r++) seen[r] = Partial{};
    const int end = own[rows - 1] + 1;
    for (int block = window ? std::max(0, own[0] + 1 - window) : 0; block < end; block += SEEN) {
      const int count = std::min(SEEN, end - block);
      pack(cache, paging, row, block, count);
      for (int i = 0; i < SEEN; i += PANEL)
        multiply_panel(rows, Rows<X>{q, size_t(dim)}, keys_.data() + size_t(i) * dim, PANEL_BLOCKS,
                       dim, scores_.data() + i, SEEN, false);
      weigh(rows, block, count, window, own, dim);
      for (int d = 0; d < dim; d += PANEL)
        multiply_panel(rows, Rows<X>{weights_.data(), SEEN}, values_.data() + size_t(d) * SEEN,
                       std::min(PANEL_BLOCKS, (dim - d) / LANES), SEEN, out.data() + d, dim, true);
    }
  }

  std::vector<float> out;
  Partial seen[MANY];

 private:
  void reserve(int dim) {
    keys_.resize(size_t(SEEN) * dim);
    values_.resize(size_t(SEEN) * dim);
    scores_.resize(size_t(MANY) * SEEN);
    weights_.resize(size_t(MANY) * SEEN);
    out.resize(size_t(MANY) * dim);
  }

  void pack(const HeadCache<T>& cache, const Paging& paging, const Row& row, int block, int count) {
    constexpr int G = Dot<X>::GROUP;
    const int dim = cache.head_dim;
    std::fill(keys_.begin(), keys_.end(), X{});
    std::fill(values_.begin(), values_.end(), X{});
    for (int i = 0; i < count; i++) {
      const size_t offset = paging.slot(row, block + i) * cache.stride;
      const T* key = cache.keys + offset;
      X* keys = &keys_[size_t(i / PANEL) * PANEL * dim + i % PANEL * G];
      for (int d = 0; d < dim; d += G)
        for (int j = 0; j < G; j++) put(keys + size_t(d) * PANEL + j, key[d + j]);
      const T* value = cache.values + offset;
      for (int d = 0; d < dim; d += PANEL) {
        const int wide = std::min(PANEL, dim - d);
        X* panel = &values_[size_t(d) * SEEN + size_t(i / G) * wide * G + i % G];
        for (int j = 0; j < wide; j++) put(panel + j * G, value[d + j]);
      }
    }
  }

  // Scores -> weights; sums of earlier blocks shrink to the new top.
  void weigh(int rows, int block, int count, int window, const int* own, int dim) {
    const float hidden = -INFINITE;
    for (int r = 0; r < rows; r++) {
      float* scores = &scores_[size_t(r) * SEEN];
      const int last = std::min(count, own[r] + 1 - block);
      const int first = window ? std::max(0, own[r] + 1 - window - block) : 0;
      for (int i = std::max(0, last); i < SEEN; i++) scores[i] = hidden;
      for (int i = 0; i < std::min(first, SEEN); i++) scores[i] = hidden;
      const float shrink = soften(scores, SEEN, seen[r]);
      for (int i = 0; i < SEEN; i += LANES)
        store(&weights_[size_t(r) * SEEN + i], load(scores + i));
      if (shrink != 1.0f)
        for (int d = 0; d < dim; d += LANES) {
          float* o = &out[size_t(r) * dim + d];
          store(o, load(o) * shrink);
        }
    }
  }

  std::vector<X> keys_, values_, weights_;
  std::vector<float> scores_;
};

}  // namespace mix::MIX_ISA
