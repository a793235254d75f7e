// Attention of one step: which pieces of which rows are computed at once, shared by the team.
#pragma once

#include "spec.h"
#include "team.h"

namespace mix::MIX_ISA {

template <class T>
class StepAttention {
 public:
  typedef Read<T> X;

  explicit StepAttention(const ModelSpec& spec)
      : m_(spec), q_width_(spec.heads * spec.head_dim), kv_width_(spec.kv_heads * spec.head_dim) {}

  // For a step: qkv [tokens, width of q, k and v], attended [tokens, width of q].
  void set(const Step& step, const float* qkv, X* attended) {
    step_ = step;
    paging_ = {step.blocks, m_.block_size};
    qkv_ = qkv;
    attended_ = attended;
    cut();
  }

  // Where a token's keys and values begin in the cache.
  size_t slot(int token) const {
    const Row& row = step_.rows[row_of_[token]];
    return paging_.slot(row, row.start + token - row.first) * kv_width_;
  }

  // Every thread calls it.
  void attend(Team& team, const Layer& layer) {
    // Heads of a position lie side by side: one thread reads them all if there is enough to do.
    const int heads = int(pieces_.size()) < 4 * team.threads() ? 1 : m_.kv_heads;
    const int tasks = m_.kv_heads / heads;
    const int last = int(pieces_.size()) - 1, ahead = ceil_div(team.threads(), tasks);
    team.share(int(pieces_.size()) * tasks, [&](int task) {
      const int index = task / tasks;
      const Piece& piece = pieces_[index];
      const int head = task % tasks * heads;
      const T* keys = static_cast<const T*>(layer.keys) + head * m_.head_dim;
      const T* values = static_cast<const T*>(layer.values) + head * m_.head_dim;
      const HeadCache<T> cache = {keys, values, size_t(kv_width_), heads, m_.head_dim};
      if (step_.rows[piece.row].length > 1)
        attend_many(cache, piece, head, int(layer.window));
      else
        attend_one(cache, piece, pieces_[std::min(last, index + ahead)], head, int(layer.window));
    });
    if (splits_ > 0)
      team.share(int(pieces_.size()), [&](int piece) {
        if (pieces_[piece].splits > 1 && pieces_[piece].split == 0) join(pieces_[piece]);
      });
  }

 private:
  // A piece of attention: one kv head of one token over some positions, or of several tokens.
  struct Piece {
    int32_t row;
    int32_t token;  // of the row
    int32_t tokens;
    int32_t split;
    int32_t splits;
    int32_t partial;  // index of its partial result
  };

  // The step's rows in pieces.
  void cut() {
    const int group = m_.heads / m_.kv_heads, many = std::max(1, MANY / group);
    pieces_.clear();
    splits_ = 0;
    row_of_.resize(step_.tokens);
    for (int r = 0; r < step_.num_rows; r++) {
      const Row& row = step_.rows[r];
      std::fill_n(row_of_.begin() + row.first, row.length, r);
      if (row.length > 1) {
        for (int t = 0; t < row.length; t += many)
          pieces_.push_back({r, t, std::min(many, row.length - t), 0, 1, -1});
        continue;
      }
      const int splits = ceil_div(row.start + 1, SPLIT);
      for (int s = 0; s < splits; s++)
        pieces_.push_back({r, 0, 1, s, splits, splits > 1 ? splits_++ : -1});
    }
    partial_.resize(size_t(splits_) * m_.heads);
    partial_out_.resize(size_t(splits_) * q_width_);
  }

  // What the first token of a piece sees.
  Stretch stretch(const Piece& piece, int window) const {
    const Row& row = step_.rows[piece.row];
    const int stop = row.start + piece.token + 1;
    const int seen_from = window ? std::max(0, stop - window) : 0;
    return {&row, std::max(piece.split * SPLIT, seen_from),
            std::min(stop, (piece.split + 1) * SPLIT)};
  }

  void attend_one(const HeadCache<T>& cache, const Piece& piece, const Piece& next, int head,
                  int window) {
    static thread_local std::vector<float> local;
    static thread_local std::vector<X> query;
    const Row& row = step_.rows[piece.row];
    const int group = m_.heads / m_.kv_heads, count = cache.heads * group;
    const int width = count * m_.head_dim, at = head * group * m_.head_dim;
    const float* q = &qkv_[size_t(row.first) * qkv_width() + at];
    local.resize(width);
    query.resize(width);
    for (int d = 0; d < width; d += LANES) store(&query[d], load(q + d));
    std::vector<Partial> seen(count);
    const bool whole = piece.splits == 1;
    float* out = whole ? local.data() : &partial_out_[size_t(piece.partial) * q_width_ + at];
    Single<T>::attend(cache, paging_, stretch(piece, window), stretch(next, window), query.data(),
                      group, seen.data(), out);
    if (!whole) {
      std::copy_n(seen.data(), count, &partial_[size_t(piece.partial) * m_.heads + head * group]);
      return;
    }
    X* target = &attended_[size_t(row.first) * q_width_ + at];
    for (int h = 0; h < count; h++)
      for (int d = h * m_.head_dim; d < (h + 1) * m_.head_dim; d += LANES)
        store(target + d, load(out + d) / seen[h].norm);
  }

  // The parts of a token's context put together.
  void join(const Piece& piece) {
    X* target = &attended_[size_t(step_.rows[piece.row].first) * q_width_];
    for (int h = 0; h < m_.heads; h++) {
      const Partial* parts = &partial_[size_t(piece.partial) * m_.heads + h];
      float top = parts[0].top, norm = 0;
      for (int s = 1; s < piece.splits; s++) top = std::max(top, parts[s * m_.heads].top);
      for (int s = 0; s < piece.splits; s++)
        norm += parts[s * m_.heads].norm * std::exp(parts[s * m_.heads].top - top);
      for (int d = h * m_.head_dim; d < (h + 1) * m_.head_dim; d += LANES) {
        Floats total = {};
        for (int s = 0; s < piece.splits; s++)
          total += load(&partial_out_[size_t(piece.partial + s) * q_width_ + d]) *
                   std::exp(parts[s * m_.heads].top - top);
        store(target + d, total / norm);
      }
    }
  }

  void attend_many(HeadCache<T> cache, const Piece& piece, int head, int window) {
    for (const int end = head + cache.heads; head < end; head++) {
      attend_block(cache, piece, head, window);
      cache.keys += m_.head_dim;
      cache.values += m_.head_dim;
    }
  }

  // Several tokens of a row and the query heads of one kv head.
  void attend_block(const HeadCache<T>& cache, const Piece& piece, int head, int window) {
    static thread_local Many<T> many;
    static thread_local std::vector<X> queries;
    static thread_local std::vector<int> own;
    const Row& row = step_.rows[piece.row];
    const int dim = m_.head_dim, group = m_.heads / m_.kv_heads, rows = piece.tokens * group;
    queries.resize(size_t(rows) * dim);
    own.resize(rows);
    const size_t first = row.first + piece.token;
    for (int r = 0; r < rows; r++) {
      const float* q = &qkv_[(first + r / group) * qkv_width() + (head * group + r % group) * dim];
      for (int d = 0; d < dim; d += LANES) store(&queries[size_t(r) * dim + d], load(q + d));
      own[r] = row.start + piece.token + r / group;
    }
    many.attend(cache, paging_, row, window, queries.data(), own.data(), rows);
    for (int r = 0; r < rows; r++) {
      X* target = &attended_[(first + r / group) * q_width_ + (head * group + r % group) * dim];
      for (int d = 0; d < dim; d += LANES)
        store(target + d, load(&many.out[size_t(r) * dim + d]) / many.seen[r].norm);
    }
  }

  int qkv_width() const { return q_width_ + 2 * kv_width_; }

  const ModelSpec m_;
  const int q_width_, kv_width_;
  Step step_;
  Paging paging_;
  const float* qkv_ = nullptr;
  X* attended_ = nullptr;
  std::vector<Piece> pieces_;
  std::vector<int> row_of_;  // by token
  std::vector<Partial> partial_;
  std::vector<float> partial_out_;
  int splits_ = 0;
};

}  // namespace mix::MIX_ISA
