// The decoder of the Llama family (Llama, Mistral, Qwen2, Qwen3) over a flat batch of tokens.
//
// The residual stream, norms, rotations and softmax are in fp32; what a product reads is in the
// format that products with weights in the model's own format T read. One call runs all layers:
// threads meet at some ten points a layer.
#pragma once

#include "layer_router.h"
#include "mixture_linear.h"
#include "prompt.h"
#include "step_attention.h"
#include "summary.h"

namespace mix::MIX_ISA {

// target = x / rms(x) * weight. Source: Zhang and Sennrich, "Root Mean Square Layer Normalization".
template <class T>
inline void rms_norm(const float* x, const float* weight, int size, float epsilon, T* target) {
  Floats squares = {};
  for (int i = 0; i < size; i += LANES) {
    const Floats v = load(x + i);
    squares += v * v;
  }
  const float inverse = 1.0f / std::sqrt(sum(squares) / size + epsilon);
  for (int i = 0; i < size; i += LANES)
    store(target + i, load(x + i) * inverse * load(weight + i));
}

class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual void run(const Step& step) = 0;
};

template <class T>
class Model : public Decoder {
 public:
  typedef Read<T> X;

  explicit Model(const ModelSpec& spec)
      : m_(spec),
        layers_(spec.layers, spec.layers + spec.num_layers),
        attention_(spec),
        mixing_(spec.num_layers) {
    q_width_ = m_.heads * m_.head_dim;
    kv_width_ = m_.kv_heads * m_.head_dim;
    qkv_width_ = q_width_ + 2 * kv_width_;
  }

  void run(const Step& step) override {
    step_ = step;
    reserve();
    prepare_mixture();
    attention_.set(step, qkv_.data(), attended_.data());
    with_team(step.threads, [&](Team& team) {
      embed(team);
      for (int layer = 0; layer < m_.num_layers; layer++) {
        if (step_.hidden_states && layer == step_.probe_layer) store_hidden_states(team);
        attention(team, layers_[layer], mixing_[layer]);
        mlp(team, layers_[layer], mixing_[layer]);
      }
      head(team);
    });
  }

 private:
  // gate_up: parallel bottlenecks are its third layer, since they read the same.
  struct LayerMixing {
    LayerRouting routing;
    Mixing qkv, prompt, o, gate_up, down, serial;
  };
  static constexpr int PARALLEL = 2;

  void reserve() {
    const size_t tokens = step_.tokens;
    residual_.resize(tokens * m_.hidden);
    x_.resize(tokens * m_.hidden);
    qkv_.resize(tokens * qkv_width_);
    attended_.resize(tokens * q_width_);
    active_.resize(tokens * m_.intermediate);
    angles_.resize(tokens * m_.head_dim);
    if (m_.head.is_int8)
      linears_.reserve_quantized(step_.tokens,
                                 std::max({m_.hidden, q_width_, m_.intermediate}));
  }

  void prepare_mixture() {
    std::vector<int> all(step_.tokens);
    for (int i = 0; i < step_.tokens; i++) all[i] = i;
    const auto hear = [&](Audience& audience, const Weights& weights, const int* rows, int count) {
      if (weights.columns > 0) audience.set(weights, rows, count);
    };
    hear(everyone_, step_.weights, all.data(), step_.tokens);
    hear(sampled_, step_.weights, step_.sample_index, step_.samples);
    if (step_.probe_layer > 0) hear(below_, step_.lower, all.data(), step_.tokens);
    int width = 0;
    for (int i = 0; i < m_.num_layers; i++) {
      const bool lower = i < step_.probe_layer;
      const Weights& weights = lower ? step_.lower : step_.weights;
      const Audience& audience = lower ? below_ : everyone_;
      const Layer& l = layers_[i];
      LayerMixing& mixing = mixing_[i];
      LayerGates gates;
      const auto mix_layers = [&](Mixing& phase, std::initializer_list<int> modules,
                                  int from = 0) {
        width = std::max(width, mix(phase, weights, audience, gates, modules, from));
      };
      mixing.routing.set(weights, audience, i, step_.tokens);
      gates = mixing.routing.gates;
      mix_layers(mixing.qkv, {l.q.module, l.k.module, l.v.module});
      mix_layers(mixing.o, {l.o.module});
      mixing.prompt.clear();
      mixing.serial.clear();
      if (!weights.beside) {
        mix_layers(mixing.gate_up, {l.gate.module, l.up.module});
        mix_layers(mixing.down, {l.down.module});
        continue;
      }
      mix_layers(mixing.prompt, {l.prompt});
      mix_layers(mixing.serial, {l.serial});
      mix_layers(mixing.gate_up, {l.gate.module, l.up.module, l.parallel});
      // z of parallel bottlenecks is kept until down_proj is computed, beside its own.
      mix_layers(mixing.down, {l.down.module}, mixing.gate_up.phase.width);
      mixing.gate_up.phase.width = mixing.down.phase.width;
      if (mixing.serial.active()) module_.resize(residual_.size());
    }
    width = std::max(width, mix(head_mixing_, step_.weights, sampled_, {}, {m_.head.module}));
    linears_.reserve(step_.tokens, width, {&step_.weights, &step_.lower});
  }

  int mix(Mixing& mixing, const Weights& weights, const Audience& audience,
          const LayerGates& gates, std::initializer_list<int> modules, int from = 0) {
    mixing.clear();
    if (weights.columns == 0) return 0;
    mixing.weights = &weights;
    mixing.audience = &audience;
    mixing.gates = gates;
    mixing.phase.set(weights, audience, modules.begin(), int(modules.size()), from);
    return mixing.phase.width;
  }

  // What routers read: the residual stream, as the layers below leave it.
  void store_hidden_states(Team& team) {
    team.share(step_.tokens, [&](int token) {
      const size_t at = size_t(token) * m_.hidden;
      std::copy_n(&residual_[at], m_.hidden, step_.hidden_states + at);
    });
  }

  void embed(Team& team) {
    team.share(step_.tokens, [&](int token) {
      const T* row = static_cast<const T*>(m_.embedding) +
                     size_t(step_.token_ids[token]) * m_.hidden;
      float* target = &residual_[size_t(token) * m_.hidden];
      for (int i = 0; i < m_.hidden; i += LANES) store(target + i, load(row + i));
      const int half = m_.head_dim / 2;
      float* angle = &angles_[size_t(token) * m_.head_dim];
      for (int i = 0; i < half; i++) {
        const float turn = m_.frequencies[i] * float(step_.positions[token]);
        angle[i] = std::cos(turn) * m_.rope_scale;
        angle[half + i] = std::sin(turn) * m_.rope_scale;
      }
    });
  }

  // x of a token and `row`, which layers like `reader` read.
  void norm(int token, int row, const float* weight, const Linear& reader) {
    X* x = &x_[size_t(row) * m_.hidden];
    rms_norm(&residual_[size_t(token) * m_.hidden], weight, m_.hidden, m_.epsilon, x);
    if (reader.is_int8) linears_.quantize(row, x, m_.hidden);
  }

  // Routers read the residual stream too, and norm it for themselves if they read it normed: that
  // costs less than to meet once more.
  void norm_and_route(Team& team, const Layer& layer, const LayerRouting& routing) {
    const int routed = int(routing.tasks.size());
    team.share(routed + step_.tokens, [&](int task) {
      if (task < routed)
        route_some(layer, routing, routing.tasks[task]);
      else
        norm(task - routed, task - routed, layer.attention_norm, layer.q);
    });
  }

  // What a router reads of a token.
  void read_token(const Layer& layer, const Router& router, int token, X* x) {
    const float* residual = &residual_[size_t(token) * m_.hidden];
    if (!router.pre_norm) return rms_norm(residual, layer.attention_norm, m_.hidden, m_.epsilon, x);
    for (int d = 0; d < m_.hidden; d += LANES) store(x + d, load(residual + d));
  }

  // One gate for all tokens of a request: that of the mean over its prompt.
  void route_prompt(const Layer& layer, const LayerRouting& routing, const RouterTask& task) {
    static thread_local std::vector<X> read;
    static thread_local std::vector<float> mean;
    const Prompt& prompt = *task.prompt;
    read.resize(m_.hidden);
    mean.assign(m_.hidden, 0.0f);
    for (int token = prompt.first; token < prompt.first + prompt.prompt; token++) {
      read_token(layer, *task.router, token, read.data());
      for (int d = 0; d < m_.hidden; d += LANES) store(&mean[d], load(&mean[d]) + load(&read[d]));
    }
    const Floats share = splat(1.0f / prompt.prompt);
    for (int d = 0; d < m_.hidden; d += LANES) store(&read[d], load(&mean[d]) * share);
    float* gates = routing.of(prompt.first, task.column);
    route<T>(*task.router, read.data(), m_.hidden, 1, &gates);
    for (int i = 1; i < prompt.count; i++)
      std::copy_n(gates, task.router->outputs, routing.of(prompt.first + i, task.column));
  }

  void route_some(const Layer& layer, const LayerRouting& routing, const RouterTask& task) {
    static thread_local std::vector<X> read;
    if (task.prompt) return route_prompt(layer, routing, task);
    const std::vector<int>& members = routing.audience->members[task.column];
    const int count = std::min(ROUTED, int(members.size()) - task.first);
    float* gates[ROUTED];
    read.resize(size_t(ROUTED) * m_.hidden);
    for (int i = 0; i < count; i++) {
      const int token = members[task.first + i];
      gates[i] = routing.of(token, task.column);
      read_token(layer, *task.router, token, &read[size_t(i) * m_.hidden]);
    }
    route<T>(*task.router, read.data(), m_.hidden, count, gates);
  }

  void attention(Team& team, const Layer& layer, const LayerMixing& mixing) {
    norm_and_route(team, layer, mixing.routing);
    linears_.prepare(team, mixing.qkv, false, step_.tokens, x_.data(), m_.hidden, m_.hidden);
    const Job jobs[3] = {
        {&layer.q, qkv_.data(), size_t(qkv_width_), false},
        {&layer.k, qkv_.data() + q_width_, size_t(qkv_width_), false},
        {&layer.v, qkv_.data() + q_width_ + kv_width_, size_t(qkv_width_), false}};
    linears_.run(team, jobs, 3, mixing.qkv, step_.tokens, x_.data(), m_.hidden);
    team.share(step_.tokens, [&](int token) { place(layer, token); });
    attention_.attend(team, layer);
    if (mixing.prompt.active()) attend_prompts(team, mixing.prompt);
    linears_.prepare(team, mixing.o, layer.o.is_int8, step_.tokens, attended_.data(), q_width_,
                     q_width_);
    const Job job = {&layer.o, residual_.data(), size_t(m_.hidden), true};
    linears_.run(team, &job, 1, mixing.o, step_.tokens, attended_.data(), q_width_);
  }

  void attend_prompts(Team& team, const Mixing& mixing) {
    team.share(step_.tokens, [&](int token) {
      for (const Span& span : mixing.phase.spans) {
        const float factor = mixing.factor(token, span, 0);
        if (factor != 0)
          attend_prompt<T>(span.expert, factor, &qkv_[size_t(token) * qkv_width_], m_.heads,
                        m_.kv_heads, m_.head_dim, &attended_[size_t(token) * q_width_]);
      }
    });
  }

  // Norms and rotates a token's queries and keys; its keys and values go into the cache.
  void place(const Layer& layer, int token) {
    float* q = &qkv_[size_t(token) * qkv_width_];
    float* k = q + q_width_;
    const float* v = k + kv_width_;
    const float* angle = &angles_[size_t(token) * m_.head_dim];
    for (int h = 0; h < m_.heads; h++)
      turn(q + h * m_.head_dim, layer.q_norm, angle, m_.attention_scale);
    for (int h = 0; h < m_.kv_heads; h++) turn(k + h * m_.head_dim, layer.k_norm, angle, 1.0f);
    const size_t slot = attention_.slot(token);
    T* keys = static_cast<T*>(layer.keys) + slot;
    T* values = static_cast<T*>(layer.values) + slot;
    for (int d = 0; d < kv_width_; d += LANES) {
      store(keys + d, load(k + d));
      store(values + d, load(v + d));
    }
  }

  // Source: Su et al., "RoFormer"; halves of a head are the two coordinates, as in transformers.
  void turn(float* head, const float* weight, const float* angle, float scale) {
    const int half = m_.head_dim / 2;
    if (weight) rms_norm(head, weight, m_.head_dim, m_.epsilon, head);
    for (int i = 0; i < half; i++) {
      const float a = head[i], b = head[half + i], c = angle[i], s = angle[half + i];
      head[i] = (a * c - b * s) * scale;
      head[half + i] = (b * c + a * s) * scale;
    }
  }

  void mlp(Team& team, const Layer& layer, const LayerMixing& mixing) {
    team.share(step_.tokens,
               [&](int token) { norm(token, token, layer.mlp_norm, layer.gate); });
    linears_.prepare(team, mixing.gate_up, false, step_.tokens, x_.data(), m_.hidden, m_.hidden);
    const int panels = ceil_div(m_.intermediate, PANEL);
    const int chunk =
        step_.tokens > 64 ? 1 : MixtureLinear<T>::panels_a_task(2 * panels, team.threads(), step_.tokens);
    team.share(ceil_div(panels, chunk), [&](int task) {
      gate(layer, mixing.gate_up, task * chunk, std::min(panels, (task + 1) * chunk));
    });
    down(team, layer.down, mixing);
    if (mixing.serial.active()) add_serial(team, mixing.serial);
  }

  // residual += down_proj(x) and parallel bottlenecks. Serial ones read the former by itself, in x.
  void down(Team& team, const Linear& linear, const LayerMixing& mixing) {
    const int width = m_.intermediate;
    linears_.prepare(team, mixing.down, linear.is_int8, step_.tokens, active_.data(), width, width);
    if (mixing.serial.active()) {
      const Job job = {&linear, module_.data(), size_t(m_.hidden), false};
      linears_.run(team, &job, 1, base_, step_.tokens, active_.data(), width,
                   [&](int begin, int end) {
                     take_apart(mixing.down, begin, end);
                     add_parallel(mixing.gate_up, begin, end);
                   });
    } else {
      const Job job = {&linear, residual_.data(), size_t(m_.hidden), true};
      linears_.run(team, &job, 1, mixing.down, step_.tokens, active_.data(), width,
                   [&](int begin, int end) { add_parallel(mixing.gate_up, begin, end); });
    }
  }

  void add_parallel(const Mixing& mixing, int begin, int end) {
    if (mixing.has(PARALLEL))
      linears_.add_experts(mixing, PARALLEL, m_.hidden, begin, end, residual_.data(), m_.hidden);
  }

  // Outputs [begin, end) of the base's down_proj, which are in module_, with their experts: into
  // the residual stream, added in the order of `run`, and alone into x.
  void take_apart(const Mixing& mixing, int begin, int end) {
    const auto each = [&](const auto& work) {
      for (int token = 0; token < step_.tokens; token++)
        for (int i = begin; i < end; i += LANES) work(size_t(token) * m_.hidden + i);
    };
    each([&](size_t i) { store(&residual_[i], load(&residual_[i]) + load(&module_[i])); });
    if (mixing.active())
      for (float* y : {residual_.data(), module_.data()})
        linears_.add_experts(mixing, 0, m_.hidden, begin, end, y, m_.hidden);
    each([&](size_t i) { store(&x_[i], load(&module_[i])); });
  }

  // residual += bottlenecks of x, what the feed-forward module puts out
  void add_serial(Team& team, const Mixing& mixing) {
    linears_.prepare(team, mixing, false, step_.tokens, x_.data(), m_.hidden, m_.hidden);
    team.share(ceil_div(m_.hidden, PANEL), [&](int panel) {
      linears_.add_experts(mixing, 0, m_.hidden, panel * PANEL,
                           std::min(m_.hidden, (panel + 1) * PANEL), residual_.data(), m_.hidden);
    });
  }

  // silu(gate) * up for panels [first, last). Source: Shazeer, "GLU Variants Improve Transformer".
  void gate(const Layer& layer, const Mixing& mixing, int first, int last) {
    static thread_local std::vector<float> buffer;
    const int rows = step_.tokens, begin = first * PANEL;
    const size_t wide = size_t(last - first) * PANEL;
    buffer.resize(2 * wide * rows);
    float* gates = buffer.data();
    float* ups = gates + wide * rows;
    linears_.compute({&layer.gate, gates - begin, wide, false}, 0, mixing, rows, x_.data(),
                     m_.hidden, first, last);
    linears_.compute({&layer.up, ups - begin, wide, false}, 1, mixing, rows, x_.data(), m_.hidden,
                     first, last);
    const int count = std::min(int(wide), m_.intermediate - begin);
    for (int r = 0; r < rows; r++)
      for (int i = 0; i < count; i += LANES)
        store(&active_[size_t(r) * m_.intermediate + begin + i],
              silu(load(gates + r * wide + i)) * load(ups + r * wide + i));
  }

  // Whether the norm of a token's last states is a number: NaN and infinity of any layer get there.
  bool is_finite(int token) const {
    const float* x = &residual_[size_t(token) * m_.hidden];
    Floats squares = {};
    for (int i = 0; i < m_.hidden; i += LANES) squares += load(x + i) * load(x + i);
    return sum(squares) < INFINITE;  // false for NaN too
  }

  // Logits of the sampled tokens, which move to the front of x; and which tokens are finite.
  void head(Team& team) {
    const int checks = step_.finite ? step_.tokens : 0;
    team.share(checks + step_.samples, [&](int task) {
      if (task < checks)
        step_.finite[task] = is_finite(task);
      else
        norm(step_.sample_index[task - checks], task - checks, m_.final_norm, m_.head);
    });
    if (step_.samples == 0) return;
    linears_.prepare(team, head_mixing_, false, step_.samples, x_.data(), m_.hidden, m_.hidden);
    const Job job = {&m_.head, step_.logits, size_t(step_.logits_stride), false};
    linears_.run(team, &job, 1, head_mixing_, step_.samples, x_.data(), m_.hidden);
    team.share(step_.samples, [&](int i) {
      summarise(step_.logits + size_t(i) * step_.logits_stride, m_.head.outputs, step_.best + i,
                step_.normaliser + i);
    });
  }

  const ModelSpec m_;
  const std::vector<Layer> layers_;
  int q_width_, kv_width_, qkv_width_;
  Step step_;
  StepAttention<T> attention_;
  MixtureLinear<T> linears_;
  Audience everyone_, sampled_, below_;
  std::vector<LayerMixing> mixing_;
  Mixing head_mixing_;
  const Mixing base_;  // no experts
  std::vector<float> residual_, qkv_, angles_;
  std::vector<float> module_;  // down_proj alone, where a serial bottleneck reads it
  std::vector<X> x_, attended_, active_;
};

}  // namespace mix::MIX_ISA
