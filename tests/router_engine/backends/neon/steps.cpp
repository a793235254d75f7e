// The decoder's steps for both ARM sets against plain loops: chunks of prompts and single tokens,
// over blocks that lie in no order, with and without a mixture, on one thread and on several.
// For each argument `CASE:WHAT` one thing in that case's plain loops is another, and every set and
// format must differ: `weight`, `position`, `adapter`, `bias`, `norm` or `window`.
#include <limits>

#include "reference.h"

namespace {

using namespace arm;

constexpr int BLOCK_SIZE = 8, BLOCKS = 16;  // of each request
constexpr size_t ALTERED_TOKENS = 24;       // of a request, where one number is another: past a window

struct Piece {
  int request, length;
};

struct Case {
  const char* name;
  std::vector<Request> requests;
  std::vector<std::vector<Piece>> steps;
};

// By request, token and word.
typedef std::vector<std::vector<Floats>> Logits;
typedef std::vector<std::vector<Vector>> Logits64;

// The numbers as their format holds them.
std::vector<char> stored(Format format, const Floats& values) {
  std::vector<char> bytes;
  const auto put = [&](const auto& value) {
    const char* from = reinterpret_cast<const char*>(&value);
    bytes.insert(bytes.end(), from, from + sizeof(value));
  };
  for (float value : values) {
    if (format == FP32) put(value);
    if (format == BF16) put(upper_half(value));
    if (format == INT8) put(int8_t(value));
  }
  return bytes;
}

int failures = 0;

void fail(const std::string& which, const char* what) {
  failures++;
  std::printf("%s: %s\n", which.c_str(), what);
}

// The kernels' decoder over the same weights, with a cache of its own.
class Decoder {
 public:
  Decoder(const Set& set, const Weights& weights, int requests)
      : set_(set), w_(weights), dtype_(weights.format == BF16 ? BF16 : FP32), starts_(requests) {
    embedding_ = stored(dtype_, w_.embedding);
    for (int site = 0; site < SITES; site++) linears_.push_back(pack(site));
    for (int layer = 0; layer < LAYERS; layer++) add_layer(layer, requests);
    for (const Adapter& adapter : w_.adapters) add_adapter(adapter);
    for (const auto& list : experts_) lists_.push_back(list.data());
    kernels::ModelSpec spec{};
    spec.layers = layers_.data();
    spec.embedding = embedding_.data();
    spec.final_norm = w_.final_norm.data();
    spec.frequencies = w_.frequencies.data();
    spec.head = linears_[HEAD];
    spec.num_layers = LAYERS;
    spec.hidden = HIDDEN;
    spec.heads = HEADS;
    spec.kv_heads = KV_HEADS;
    spec.head_dim = HEAD_DIM;
    spec.intermediate = INTERMEDIATE;
    spec.block_size = BLOCK_SIZE;
    spec.epsilon = EPSILON;
    spec.attention_scale = 1 / std::sqrt(float(HEAD_DIM));
    spec.rope_scale = 1;
    model_ = set_.model_new(dtype_ == BF16, &spec);
  }
  Decoder(const Decoder&) = delete;
  ~Decoder() { set_.model_free(model_); }

  bool is_summed_up = true;  // whether every token's best word and normaliser fit its logits

  // Appends the logits of every token of a step to those of its request.
  void run(const std::vector<Request>& requests, const std::vector<Piece>& pieces, int threads,
           Logits& logits) {
    constexpr int stride = (VOCABULARY + 15) / 16 * 16;
    StepArrays arrays = lay_out(requests, pieces);
    const int tokens = int(arrays.tokens.size());
    Floats found(size_t(tokens) * stride), normaliser(tokens);
    std::vector<int64_t> best(tokens);
    kernels::Step step{};
    step.token_ids = arrays.tokens.data();
    step.positions = arrays.positions.data();
    step.rows = arrays.rows.data();
    step.blocks = arrays.blocks.data();
    step.sample_index = arrays.samples.data();
    step.logits = found.data();
    step.best = best.data();
    step.normaliser = normaliser.data();
    if (!arrays.mixture.empty()) {
      step.weights.columns = int(lists_.size());
      step.weights.experts = lists_.data();
      step.weights.sum_weights = arrays.mixture.data();
    }
    step.tokens = step.samples = tokens;
    step.num_rows = int(arrays.rows.size());
    step.logits_stride = stride;
    step.threads = threads;
    set_.model_run(model_, &step);
    for (int i = 0; i < tokens; i++)
      if (!sums_up(&found[size_t(i) * stride], best[i], normaliser[i])) is_summed_up = false;
    const float* at = found.data();
    for (const Piece& piece : pieces)
      for (int i = 0; i < piece.length; i++, at += stride)
        logits[piece.request].emplace_back(at, at + VOCABULARY);
  }

 private:
  struct StepArrays {
    std::vector<int64_t> tokens;
    std::vector<int32_t> positions, blocks, samples;
    std::vector<kernels::Row> rows;
    Floats mixture;
  };

  static bool sums_up(const float* logits, int64_t best, float normaliser) {
    const float* top = std::max_element(logits, logits + VOCABULARY);
    double total = 0;
    for (int i = 0; i < VOCABULARY; i++) total += std::exp(double(logits[i]) - *top);
    return best == top - logits && std::fabs(*top + std::log(total) - normaliser) < 1e-5 * *top;
  }

  static const float* present(const Floats& values) {
    return values.empty() ? nullptr : values.data();
  }

  kernels::Linear pack(int site) {
    const Matrix& matrix = w_.linears[site];
    const auto bytes = stored(w_.format, matrix.w);
    auto& packed =
        packed_.emplace_back(set_.packed_bytes(w_.format, matrix.outputs, matrix.inputs));
    set_.pack(w_.format, bytes.data(), matrix.scales.data(), matrix.outputs, matrix.inputs,
              packed.data(), 1);
    const float* bias = w_.biases.empty() ? nullptr : w_.biases[site].data();
    return {packed.data(), bias, matrix.inputs, matrix.outputs, site, w_.format == INT8};
  }

  void add_layer(int layer, int requests) {
    const kernels::Linear* linear = &linears_[layer * MODULES];
    // What was never written is not a number, and would spread to the logits.
    const Floats unwritten(size_t(requests) * BLOCKS * BLOCK_SIZE * KV_WIDTH,
                           std::numeric_limits<float>::quiet_NaN());
    for (int i = 0; i < 2; i++) caches_.push_back(stored(dtype_, unwritten));
    layers_.push_back({linear[Q], linear[K], linear[V], linear[O], linear[GATE], linear[UP],
                       linear[DOWN], w_.attention_norm[layer].data(), w_.mlp_norm[layer].data(),
                       present(w_.q_norm), present(w_.k_norm), caches_[2 * layer].data(),
                       caches_[2 * layer + 1].data(), w_.window[layer], 0, 0, 0});
  }

  void add_adapter(const Adapter& adapter) {
    auto& list = experts_.emplace_back(SITES);
    for (int site = 0; site < SITES; site++) {
      list[site].scale_root = std::sqrt(adapter.scale);
      if (adapter.a[site].empty()) continue;
      Floats scaled = adapter.b[site];
      for (float& v : scaled) v *= adapter.scale;
      list[site].a = rows_.emplace_back(stored(dtype_, adapter.a[site])).data();
      list[site].b = rows_.emplace_back(stored(dtype_, scaled)).data();
      list[site].rank = adapter.rank;
    }
  }

  StepArrays lay_out(const std::vector<Request>& requests, const std::vector<Piece>& pieces) {
    StepArrays arrays;
    const int count = int(requests.size());
    for (const auto& [index, length] : pieces) {
      const Request& request = requests[index];
      int& start = starts_[index];
      arrays.rows.push_back({int32_t(arrays.tokens.size()), length, start,
                             int32_t(arrays.blocks.size())});
      for (int i = 0; i < BLOCKS; i++)  // from the last one on, in turn with other requests'
        arrays.blocks.push_back((BLOCKS - 1 - i) * count + index);
      for (int i = 0; i < length; i++, start++) {
        arrays.samples.push_back(int32_t(arrays.tokens.size()));
        arrays.tokens.push_back(request.tokens[start]);
        arrays.positions.push_back(start);
        if (request.mixture.empty()) continue;
        const Floats& weights = request.mixture[start];
        arrays.mixture.insert(arrays.mixture.end(), weights.begin(), weights.end());
      }
    }
    return arrays;
  }

  const Set& set_;
  const Weights& w_;
  const Format dtype_;  // of activations, cache and adapters
  std::vector<int> starts_;  // by request: tokens that were run
  std::vector<char> embedding_;
  std::vector<std::vector<char>> packed_, caches_, rows_;
  std::vector<kernels::Linear> linears_;
  std::vector<kernels::Layer> layers_;
  std::vector<std::vector<kernels::Expert>> experts_;
  std::vector<const kernels::Expert*> lists_;
  void* model_;
};

Request request(int length, bool mixed) {
  const std::vector<Floats> mixtures = {{0, 0}, {0.5f, 0}, {0, 1.25f}, {0.75f, -0.625f}};
  Request result;
  for (int i = 0; i < length; i++) {
    result.tokens.push_back(int((any() + 1) * VOCABULARY / 2));
    if (mixed) result.mixture.push_back(mixtures[(i + length) % 4]);
  }
  return result;
}

// The second request's chunk is more than one block of softmax, and more than one thread takes at
// once; later it has a chunk that begins after others.
Case batch(const char* name, bool mixed) {
  return {name,
          {request(8, mixed), request(59, mixed)},
          {{{0, 5}}, {{1, 53}, {0, 1}}, {{0, 1}, {1, 1}}, {{1, 5}, {0, 1}}}};
}

Logits run(const Set& set, const Weights& weights, const Case& one, int threads,
           const std::string& which) {
  Decoder decoder(set, weights, int(one.requests.size()));
  Logits logits(one.requests.size());
  for (const auto& pieces : one.steps) decoder.run(one.requests, pieces, threads, logits);
  if (!decoder.is_summed_up) fail(which, "summary");
  return logits;
}

// Of the largest logit. In fp32 sums of some hundred numbers may be in another order. Elsewhere
// that decides what becomes of a number halfway between two of its format: a bf16 moves by 2^-8 of
// itself, an int8 by 1/127 of the largest of its stretch, and the logits by thousandths, seldom by
// a hundredth in int8. Sets that multiply bf16 meet it often: they round the weights of softmax
// relative to the largest score so far, where the reference knows the largest of all. A wrong
// number moves the logits by more: main alters one for each kind.
double tolerance(Format format) { return format == FP32 ? 1e-5 : format == BF16 ? 1e-2 : 2e-2; }

void compare(const Logits& logits, const Logits64& exact, Format format, const std::string& which) {
  double worst = 0, top = 0;
  for (size_t r = 0; r < exact.size(); r++)
    for (size_t t = 0; t < exact[r].size(); t++)
      for (int i = 0; i < VOCABULARY; i++) {
        const double error = std::fabs(exact[r][t][i] - logits[r][t][i]);
        worst = error <= worst ? worst : error;  // NaN is worst
        top = std::max(top, std::fabs(exact[r][t][i]));
      }
  if (worst <= tolerance(format) * top) return;
  fail(which, "logits");
  std::printf("  %g of %g\n", worst, top);
}

// Makes one number another.
void alter(Weights& weights, const std::string& what) {
  if (what == "weight") weights.linears[DOWN].w[0] += weights.format == INT8 ? 4 * 127 : 1;
  if (what == "adapter") weights.adapters[0].a[Q][0] += 1;
  if (what == "bias") weights.biases[V][0] += 1;
  if (what == "norm") weights.k_norm[0] += 1;
  if (what == "window") weights.window[1]++;
}

// By the plain loops, of the first `most` tokens of each request: later ones don't change them.
Logits64 exact_logits(const Reference& reference, const Case& one, size_t most) {
  Logits64 result;
  for (Request request : one.requests) {
    const size_t count = std::min(most, request.tokens.size());
    request.tokens.resize(count);
    if (!request.mixture.empty()) request.mixture.resize(count);
    result.push_back(reference.logits(request));
  }
  return result;
}

// All sets that run here, over the same weights. Those that round alike share the plain loops.
void check(const Weights& weights, const Case& one, const std::vector<std::string>& alterations) {
  for (bool rounds : {false, true}) {
    std::vector<std::pair<std::string, Logits>> found;
    for (const Set& set : SETS) {
      const bool its_own = weights.format == BF16 && set.multiplies_bf16;
      if (its_own != rounds || !mix_runs(set.name)) continue;
      const std::string which =
          std::string(set.name) + " " + FORMATS[weights.format] + " " + one.name;
      found.emplace_back(which, run(set, weights, one, 1, which));
      if (found.back().second != run(set, weights, one, 3, which)) fail(which, "threads");
    }
    if (found.empty()) continue;
    const auto compare_all = [&](const Reference& reference, size_t most, const std::string& what) {
      const Logits64 exact = exact_logits(reference, one, most);
      for (const auto& [which, logits] : found)
        compare(logits, exact, weights.format, what + which);
    };
    compare_all(Reference(weights, rounds), SIZE_MAX, "");
    for (const std::string& what : alterations) {
      Weights other = weights;
      alter(other, what);
      Reference reference(other, rounds);
      if (what == "position") reference.shifted = 2;
      compare_all(reference, ALTERED_TOKENS, what + " ");
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<Case> cases = {
      {"prompt", {request(10, false)}, {{{0, 7}}, {{0, 1}}, {{0, 1}}, {{0, 1}}}},
      batch("batch", false),
      batch("mixture", true)};
  const std::vector<Case> extended_cases = {batch("extended", true)};
  for (const Set& set : SETS)
    if (mix_runs(set.name)) std::printf("%s\n", set.name);
  for (Format format : {FP32, BF16, INT8}) {
    for (bool extended : {false, true}) {
      const Weights weights(format, extended);
      for (const Case& one : extended ? extended_cases : cases) {
        const std::string prefix = std::string(one.name) + ":";
        std::vector<std::string> alterations;
        for (int i = 1; i < count; i++)
          if (std::string(arguments[i]).starts_with(prefix))
            alterations.push_back(arguments[i] + prefix.size());
        check(weights, one, alterations);
      }
    }
  }
  return failures != 0;
}
