// A small decoder of random weights, and its logits by plain loops: the equations of Llama, each
// request at once and without a cache, in double.
//
// Numbers are rounded where the kernels keep them in fewer bits, so that what is left between the
// two is little: see `tolerance` in steps.cpp.
#pragma once

#include "support.h"

namespace arm {

constexpr int LAYERS = 2, HIDDEN = 64, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 32, INTERMEDIATE = 112;
constexpr int VOCABULARY = 99;  // no whole number of vectors
constexpr int Q_WIDTH = HEADS * HEAD_DIM, KV_WIDTH = KV_HEADS * HEAD_DIM;
constexpr float EPSILON = 1e-5f;
enum Module { Q, K, V, O, GATE, UP, DOWN, MODULES };
constexpr int HEAD = LAYERS * MODULES, SITES = HEAD + 1;  // of a list of experts
constexpr int SHAPES[MODULES][2] = {{Q_WIDTH, HIDDEN},      {KV_WIDTH, HIDDEN},
                                    {KV_WIDTH, HIDDEN},     {HIDDEN, Q_WIDTH},
                                    {INTERMEDIATE, HIDDEN}, {INTERMEDIATE, HIDDEN},
                                    {HIDDEN, INTERMEDIATE}};

typedef std::vector<float> Floats;
typedef std::vector<double> Vector;

inline Floats numbers(int count, float scale, float mean = 0) {
  Floats values(count);
  for (float& v : values) v = mean + scale * any();
  return values;
}

// w [outputs, inputs] in fp32, whole numbers where scales [outputs] belong to it.
struct Matrix {
  int outputs, inputs;
  Floats w, scales;

  Matrix(Format format, int outputs, int inputs) : outputs(outputs), inputs(inputs) {
    w = numbers(outputs * inputs, 0.25f);  // a power of 2: still exact in bf16
    if (format != INT8) return;
    for (float& v : w) v = std::nearbyint(v * 4 * 127);
    scales = numbers(outputs, 0x1p-10f, 0x1p-9f);
  }
  double times(const Vector& x, int output) const {
    const float* row = &w[size_t(output) * inputs];
    double sum = 0;
    for (int i = 0; i < inputs; i++) sum += x[i] * row[i];
    return scales.empty() ? sum : sum * scales[output];
  }
};

// A [rank, inputs], B^T [rank, outputs] by site, nothing where the adapter does not touch one.
struct Adapter {
  int rank;
  float scale;  // a power of 2, by which B remains exact in bf16
  Floats a[SITES], b[SITES];

  Adapter(int rank, float scale) : rank(rank), scale(scale) {
    for (int layer = 0; layer < LAYERS; layer++)
      for (int module : {Q, DOWN}) {
        const auto& [outputs, inputs] = SHAPES[module];
        a[layer * MODULES + module] = numbers(rank * inputs, 0.25f);
        b[layer * MODULES + module] = numbers(rank * outputs, 0.25f);
      }
  }
};

struct Weights {
  Format format;
  std::vector<Matrix> linears;  // by site
  Floats embedding, frequencies, final_norm;
  Floats attention_norm[LAYERS], mlp_norm[LAYERS];
  std::vector<Adapter> adapters;
  std::vector<Floats> biases;  // by site, or none
  Floats q_norm, k_norm;       // [HEAD_DIM], or none
  int window[LAYERS] = {};     // positions that a token sees; 0: all

  // extended: with what Qwen2, Qwen3 and Mistral add to Llama.
  Weights(Format format, bool extended) : format(format) {
    for (int site = 0; site < HEAD; site++)
      linears.emplace_back(format, SHAPES[site % MODULES][0], SHAPES[site % MODULES][1]);
    linears.emplace_back(format, VOCABULARY, HIDDEN);
    embedding = numbers(VOCABULARY * HIDDEN, 1);
    for (int i = 0; i < HEAD_DIM / 2; i++)
      frequencies.push_back(std::pow(10000.0f, -2.0f * i / HEAD_DIM));
    for (Floats* norm : {&final_norm, attention_norm, attention_norm + 1, mlp_norm, mlp_norm + 1})
      *norm = numbers(HIDDEN, 0.5f, 1);
    adapters = {{3, 0.5f}, {8, 2}};
    if (!extended) return;
    for (const Matrix& matrix : linears) biases.push_back(numbers(matrix.outputs, 1));
    for (Floats* norm : {&q_norm, &k_norm}) *norm = numbers(HEAD_DIM, 0.5f, 1);
    window[1] = 20;
  }
};

struct Request {
  std::vector<int> tokens;
  std::vector<Floats> mixture;  // [tokens][adapters]; empty: the base alone
};

inline double rounded(double value) {  // to bf16, ties to even
  const float wide = float(value);
  uint32_t bits;
  std::memcpy(&bits, &wide, 4);
  return widened(uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16));
}

class Reference {
 public:
  // rounds: what products read is in bf16.
  Reference(const Weights& weights, bool rounds) : w_(weights), rounds_(rounds) {}

  int shifted = -1;  // a token that is taken to lie one position further; none

  // [tokens][vocabulary]
  std::vector<Vector> logits(const Request& request) const {
    std::vector<Vector> residual, result;
    for (int token : request.tokens) {
      const float* row = &w_.embedding[size_t(token) * HIDDEN];
      residual.emplace_back(row, row + HIDDEN);
    }
    for (int layer = 0; layer < LAYERS; layer++) {
      attention(request, layer, residual);
      for (size_t t = 0; t < residual.size(); t++) mlp(request, layer, t, residual[t]);
    }
    for (size_t t = 0; t < residual.size(); t++)
      result.push_back(linear(HEAD, norm(residual[t], w_.final_norm), request, t));
    return result;
  }

 private:
  double kept(double value) const { return rounds_ ? rounded(value) : value; }
  double cached(double value) const { return w_.format == BF16 ? rounded(value) : value; }

  // Each stretch of x that is as long as the weight.
  static Vector normed(Vector x, const Floats& weight) {
    for (size_t first = 0; first < x.size(); first += weight.size()) {
      double squares = 0;
      for (size_t i = 0; i < weight.size(); i++) squares += x[first + i] * x[first + i];
      const double inverse = 1 / std::sqrt(squares / weight.size() + EPSILON);
      for (size_t i = 0; i < weight.size(); i++) x[first + i] *= inverse * weight[i];
    }
    return x;
  }

  Vector norm(const Vector& x, const Floats& weight) const {
    Vector y = normed(x, weight);
    for (double& v : y) v = kept(v);
    return y;
  }

  // As layers in 8 bits read it: router_engine/model/quantized.py.
  static Vector quantized(Vector x) {
    for (size_t i = 0; i < x.size(); i += STRETCH) {
      const size_t end = std::min(x.size(), i + STRETCH);
      double top = 0;
      for (size_t j = i; j < end; j++) top = std::max(top, std::fabs(x[j]));
      for (size_t j = i; j < end; j++) x[j] = std::nearbyint(x[j] / top * 127) * top / 127;
    }
    return x;
  }

  // x W^T + sum_i w_i scale_i x A_i^T B_i^T
  Vector linear(int site, const Vector& x, const Request& request, size_t token) const {
    const Matrix& matrix = w_.linears[site];
    const Vector in = w_.format == INT8 ? quantized(x) : x;
    Vector y(matrix.outputs);
    for (int o = 0; o < matrix.outputs; o++)
      y[o] = matrix.times(in, o) + (w_.biases.empty() ? 0 : w_.biases[site][o]);
    if (request.mixture.empty()) return y;
    for (size_t i = 0; i < w_.adapters.size(); i++) {
      const Adapter& adapter = w_.adapters[i];
      for (size_t r = 0; r < adapter.a[site].size() / x.size(); r++) {
        double z = 0;
        for (size_t j = 0; j < x.size(); j++) z += x[j] * adapter.a[site][r * x.size() + j];
        z = kept(z * request.mixture[token][i]);
        for (size_t o = 0; o < y.size(); o++)
          y[o] += adapter.scale * z * adapter.b[site][r * y.size() + o];
      }
    }
    return y;
  }

  // Halves of a head are the two coordinates. Source: Su et al., "RoFormer".
  void rotate(Vector& heads, size_t token) const {
    const double position = double(token) + (int(token) == shifted);
    for (size_t first = 0; first < heads.size(); first += HEAD_DIM)
      for (int i = 0; i < HEAD_DIM / 2; i++) {
        double &a = heads[first + i], &b = heads[first + HEAD_DIM / 2 + i];
        const double angle = position * w_.frequencies[i], c = std::cos(angle), s = std::sin(angle);
        const double turned = a * c - b * s;
        b = b * c + a * s;
        a = turned;
      }
  }

  void attention(const Request& request, int layer, std::vector<Vector>& residual) const {
    const int site = layer * MODULES;
    std::vector<Vector> keys, values;
    for (size_t t = 0; t < residual.size(); t++) {
      const Vector x = norm(residual[t], w_.attention_norm[layer]);
      Vector q = linear(site + Q, x, request, t);
      keys.push_back(linear(site + K, x, request, t));
      values.push_back(linear(site + V, x, request, t));
      if (!w_.q_norm.empty()) q = normed(q, w_.q_norm);
      if (!w_.k_norm.empty()) keys[t] = normed(keys[t], w_.k_norm);
      rotate(q, t);
      rotate(keys[t], t);
      for (double& v : q) v = kept(v / std::sqrt(double(HEAD_DIM)));
      for (double& v : keys[t]) v = cached(v);
      for (double& v : values[t]) v = cached(v);
      const Vector added = linear(site + O, attended(q, keys, values, w_.window[layer]), request, t);
      for (int d = 0; d < HIDDEN; d++) residual[t][d] += added[d];
    }
  }

  // softmax(q K^T) V over the positions up to a token's own, the last `window` of them.
  Vector attended(const Vector& q, const std::vector<Vector>& keys,
                  const std::vector<Vector>& values, int window) const {
    const size_t begin = window && keys.size() > size_t(window) ? keys.size() - window : 0;
    Vector result(Q_WIDTH);
    for (int head = 0; head < HEADS; head++) {
      const int own = head * HEAD_DIM, shared = head / (HEADS / KV_HEADS) * HEAD_DIM;
      Vector scores(keys.size() - begin);
      for (size_t t = 0; t < scores.size(); t++)
        for (int d = 0; d < HEAD_DIM; d++) scores[t] += q[own + d] * keys[begin + t][shared + d];
      const double top = *std::max_element(scores.begin(), scores.end());
      double total = 0;
      for (double& score : scores) {
        total += std::exp(score - top);
        score = kept(std::exp(score - top));
      }
      for (int d = 0; d < HEAD_DIM; d++) {
        double sum = 0;
        for (size_t t = 0; t < scores.size(); t++) sum += scores[t] * values[begin + t][shared + d];
        result[own + d] = kept(sum / total);
      }
    }
    return result;
  }

  // Source: Shazeer, "GLU Variants Improve Transformer".
  void mlp(const Request& request, int layer, size_t token, Vector& residual) const {
    const int site = layer * MODULES;
    const Vector x = norm(residual, w_.mlp_norm[layer]);
    Vector active = linear(site + GATE, x, request, token);
    const Vector up = linear(site + UP, x, request, token);
    for (size_t i = 0; i < up.size(); i++)
      active[i] = kept(active[i] / (1 + std::exp(-active[i])) * up[i]);
    const Vector added = linear(site + DOWN, active, request, token);
    for (int d = 0; d < HIDDEN; d++) residual[d] += added[d];
  }

  const Weights& w_;
  const bool rounds_;
};

}  // namespace arm
