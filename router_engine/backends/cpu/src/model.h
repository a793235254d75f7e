// The decoder of the Llama family (Llama, Mistral, Qwen2, Qwen3) over a flat batch of tokens.
//
// The residual stream, norms, rotations and softmax are in fp32; what a product reads is in the
// format that products with weights in the model's own format T read. One call runs all layers:
// threads pass some ten barriers a layer.
#pragma once

#include "gating.h"
#include "mixture_linear.h"
#include "norm.h"
#include "prompt.h"
#include "step_attention.h"
#include "summary.h"

namespace mix::MIX_ISA {

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
        mixtures_(spec.num_layers) {
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
        attention(team, layers_[layer], mixtures_[layer]);
        mlp(team, layers_[layer], mixtures_[layer]);
      }
      head(team);
    });
  }

 private:
  // gate_up: parallel bottlenecks are its third layer, since they read the same.
  struct LayerMixtures {
    LayerGating gating;
    PhaseMixture qkv, prompt, o, gate_up, down, serial;
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
    const auto bind = [&](TokenSet& token_set, const Weights& weights, const int* rows, int count) {
      if (weights.columns > 0) token_set.set(weights, rows, count);
    };
    bind(all_tokens_, step_.weights, all.data(), step_.tokens);
    bind(sampled_, step_.weights, step_.sample_index, step_.samples);
    if (step_.probe_layer > 0) bind(below_, step_.below_probe, all.data(), step_.tokens);
    int width = 0;
    for (int i = 0; i < m_.num_layers; i++) {
      const bool is_below = i < step_.probe_layer;
      const Weights& weights = is_below ? step_.below_probe : step_.weights;
      const TokenSet& token_set = is_below ? below_ : all_tokens_;
      const Layer& l = layers_[i];
      LayerMixtures& mixtures = mixtures_[i];
      LayerGates gates;
      const auto mix_layers = [&](PhaseMixture& phase, std::initializer_list<int> modules,
                                  int from = 0) {
        width = std::max(width, mix(phase, weights, token_set, gates, modules, from));
      };
      mixtures.gating.set(weights, token_set, i, step_.tokens);
      gates = mixtures.gating.gates;
      mix_layers(mixtures.qkv, {l.q.module, l.k.module, l.v.module});
      mix_layers(mixtures.o, {l.o.module});
      mixtures.prompt.clear();
      mixtures.serial.clear();
      if (!weights.has_other_sites) {
        mix_layers(mixtures.gate_up, {l.gate.module, l.up.module});
        mix_layers(mixtures.down, {l.down.module});
        continue;
      }
      mix_layers(mixtures.prompt, {l.prompt});
      mix_layers(mixtures.serial, {l.serial});
      mix_layers(mixtures.gate_up, {l.gate.module, l.up.module, l.parallel});
      // z of parallel bottlenecks is kept until down_proj is computed, beside its own.
      mix_layers(mixtures.down, {l.down.module}, mixtures.gate_up.phase.width);
      mixtures.gate_up.phase.width = mixtures.down.phase.width;
      if (mixtures.serial.active()) module_.resize(residual_.size());
    }
    width = std::max(width, mix(head_mixture_, step_.weights, sampled_, {}, {m_.head.module}));
    linears_.reserve(step_.tokens, width, {&step_.weights, &step_.below_probe});
  }

  int mix(PhaseMixture& mixture, const Weights& weights, const TokenSet& token_set,
          const LayerGates& gates, std::initializer_list<int> modules, int from = 0) {
    mixture.clear();
    if (weights.columns == 0) return 0;
    mixture.weights = &weights;
    mixture.token_set = &token_set;
    mixture.gates = gates;
    mixture.phase.set(weights, token_set, modules.begin(), int(modules.size()), from);
    return mixture.phase.width;
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

  // Gating networks read the residual stream too, and norm it for themselves if they read it
  // normed: that costs less than another barrier.
  void norm_and_gate(Team& team, const Layer& layer, const LayerGating& gating) {
    const int gated = int(gating.tasks.size());
    team.share(gated + step_.tokens, [&](int task) {
      if (task < gated)
        gate_some(layer, gating, gating.tasks[task]);
      else
        norm(task - gated, task - gated, layer.attention_norm, layer.q);
    });
  }

  // What a network reads of a token.
  void read_token(const Layer& layer, const GatingNetwork& network, int token, X* x) {
    const float* residual = &residual_[size_t(token) * m_.hidden];
    if (!network.pre_norm)
      return rms_norm(residual, layer.attention_norm, m_.hidden, m_.epsilon, x);
    for (int d = 0; d < m_.hidden; d += LANES) store(x + d, load(residual + d));
  }

  // One gate for all tokens of a request: that of the mean over its prompt.
  void gate_prompt(const Layer& layer, const LayerGating& gating, const GatingTask& task) {
    static thread_local std::vector<X> read;
    static thread_local std::vector<float> mean;
    const Prompt& prompt = *task.prompt;
    read.resize(m_.hidden);
    mean.assign(m_.hidden, 0.0f);
    for (int token = prompt.first; token < prompt.first + prompt.prompt; token++) {
      read_token(layer, *task.network, token, read.data());
      for (int d = 0; d < m_.hidden; d += LANES) store(&mean[d], load(&mean[d]) + load(&read[d]));
    }
    const Floats share = splat(1.0f / prompt.prompt);
    for (int d = 0; d < m_.hidden; d += LANES) store(&read[d], load(&mean[d]) * share);
    float* gates = gating.of(prompt.first, task.column);
    gating_values<T>(*task.network, read.data(), m_.hidden, 1, &gates);
    for (int i = 1; i < prompt.count; i++)
      std::copy_n(gates, task.network->outputs, gating.of(prompt.first + i, task.column));
  }

  void gate_some(const Layer& layer, const LayerGating& gating, const GatingTask& task) {
    static thread_local std::vector<X> read;
    if (task.prompt) return gate_prompt(layer, gating, task);
    const std::vector<int>& members = gating.token_set->members[task.column];
    const int count = std::min(TOKENS_A_TASK, int(members.size()) - task.first);
    float* gates[TOKENS_A_TASK];
    read.resize(size_t(TOKENS_A_TASK) * m_.hidden);
    for (int i = 0; i < count; i++) {
      const int token = members[task.first + i];
      gates[i] = gating.of(token, task.column);
      read_token(layer, *task.network, token, &read[size_t(i) * m_.hidden]);
    }
    gating_values<T>(*task.network, read.data(), m_.hidden, count, gates);
  }

  void attention(Team& team, const Layer& layer, const LayerMixtures& mixtures) {
    norm_and_gate(team, layer, mixtures.gating);
    linears_.prepare(team, mixtures.qkv, false, step_.tokens, x_.data(), m_.hidden, m_.hidden);
    const Job jobs[3] = {
        {&layer.q, qkv_.data(), size_t(qkv_width_), false},
        {&layer.k, qkv_.data() + q_width_, size_t(qkv_width_), false},
        {&layer.v, qkv_.data() + q_width_ + kv_width_, size_t(qkv_width_), false}};
    linears_.run(team, jobs, 3, mixtures.qkv, step_.tokens, x_.data(), m_.hidden);
    team.share(step_.tokens, [&](int token) { place(layer, token); });
    attention_.attend(team, layer);
    if (mixtures.prompt.active()) attend_prompts(team, mixtures.prompt);
    linears_.prepare(team, mixtures.o, layer.o.is_int8, step_.tokens, attended_.data(), q_width_,
                     q_width_);
    const Job job = {&layer.o, residual_.data(), size_t(m_.hidden), true};
    linears_.run(team, &job, 1, mixtures.o, step_.tokens, attended_.data(), q_width_);
  }

  void attend_prompts(Team& team, const PhaseMixture& mixture) {
    team.share(step_.tokens, [&](int token) {
      for (const Span& span : mixture.phase.spans) {
        const float factor = mixture.factor(token, span, 0);
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

  void mlp(Team& team, const Layer& layer, const LayerMixtures& mixtures) {
    team.share(step_.tokens,
               [&](int token) { norm(token, token, layer.mlp_norm, layer.gate); });
    linears_.prepare(team, mixtures.gate_up, false, step_.tokens, x_.data(), m_.hidden, m_.hidden);
    const int panels = ceil_div(m_.intermediate, PANEL);
    const int chunk = step_.tokens > 64 ? 1
                                        : MixtureLinear<T>::panels_a_task(
                                              2 * panels, team.threads(), step_.tokens);
    team.share(ceil_div(panels, chunk), [&](int task) {
      gate(layer, mixtures.gate_up, task * chunk, std::min(panels, (task + 1) * chunk));
    });
    down(team, layer.down, mixtures);
    if (mixtures.serial.active()) add_serial(team, mixtures.serial);
  }

  // residual += down_proj(x) and parallel bottlenecks. Serial ones read the former by itself, in x.
  void down(Team& team, const Linear& linear, const LayerMixtures& mixtures) {
    const int width = m_.intermediate;
    linears_.prepare(team, mixtures.down, linear.is_int8, step_.tokens, active_.data(), width,
                     width);
    if (mixtures.serial.active()) {
      const Job job = {&linear, module_.data(), size_t(m_.hidden), false};
      linears_.run(team, &job, 1, base_, step_.tokens, active_.data(), width,
                   [&](int begin, int end) {
                     take_apart(mixtures.down, begin, end);
                     add_parallel(mixtures.gate_up, begin, end);
                   });
    } else {
      const Job job = {&linear, residual_.data(), size_t(m_.hidden), true};
      linears_.run(team, &job, 1, mixtures.down, step_.tokens, active_.data(), width,
                   [&](int begin, int end) { add_parallel(mixtures.gate_up, begin, end); });
    }
  }

  void add_parallel(const PhaseMixture& mixture, int begin, int end) {
    if (mixture.has(PARALLEL))
      linears_.add_experts(mixture, PARALLEL, m_.hidden, begin, end, residual_.data(), m_.hidden);
  }

  // Outputs [begin, end) of the base's down_proj, which are in module_, with their experts: into
  // the residual stream, added in the order of `run`, and alone into x.
  void take_apart(const PhaseMixture& mixture, int begin, int end) {
    const auto each = [&](const auto& work) {
      for (int token = 0; token < step_.tokens; token++)
        for (int i = begin; i < end; i += LANES) work(size_t(token) * m_.hidden + i);
    };
    each([&](size_t i) { store(&residual_[i], load(&residual_[i]) + load(&module_[i])); });
    if (mixture.active())
      for (float* y : {residual_.data(), module_.data()})
        linears_.add_experts(mixture, 0, m_.hidden, begin, end, y, m_.hidden);
    each([&](size_t i) { store(&x_[i], load(&module_[i])); });
  }

  // residual += bottlenecks of x, what the feed-forward module puts out
  void add_serial(Team& team, const PhaseMixture& mixture) {
    linears_.prepare(team, mixture, false, step_.tokens, x_.data(), m_.hidden, m_.hidden);
    team.share(ceil_div(m_.hidden, PANEL), [&](int panel) {
      linears_.add_experts(mixture, 0, m_.hidden, panel * PANEL,
                           std::min(m_.hidden, (panel + 1) * PANEL), residual_.data(), m_.hidden);
    });
  }

  // silu(gate) * up for panels [first, last). Source: Shazeer, "GLU Variants Improve Transformer".
  void gate(const Layer& layer, const PhaseMixture& mixture, int first, int last) {
    static thread_local std::vector<float> buffer;
    const int rows = step_.tokens, begin = first * PANEL;
    const size_t wide = size_t(last - first) * PANEL;
    buffer.resize(2 * wide * rows);
    float* gates = buffer.data();
    float* ups = gates + wide * rows;
    linears_.compute({&layer.gate, gates - begin, wide, false}, 0, mixture, rows, x_.data(),
                     m_.hidden, first, last);
    linears_.compute({&layer.up, ups - begin, wide, false}, 1, mixture, rows, x_.data(), m_.hidden,
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
    linears_.prepare(team, head_mixture_, false, step_.samples, x_.data(), m_.hidden, m_.hidden);
    const Job job = {&m_.head, step_.logits, size_t(step_.logits_stride), false};
    linears_.run(team, &job, 1, head_mixture_, step_.samples, x_.data(), m_.hidden);
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
  TokenSet all_tokens_, sampled_, below_;
  std::vector<LayerMixtures> mixtures_;
  PhaseMixture head_mixture_;
  const PhaseMixture base_;  // no experts
  std::vector<float> residual_, qkv_, angles_;
  std::vector<float> module_;  // down_proj alone, where a serial bottleneck reads it
  std::vector<X> x_, attended_, active_;
};

}  // namespace mix::MIX_ISA
