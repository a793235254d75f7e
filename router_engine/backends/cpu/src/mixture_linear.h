// Linear layers with the mixture of the step, shared by a team of threads.
#pragma once

#include "layer_routing.h"
#include "spec.h"
#include "team.h"

namespace mix::MIX_ISA {

// One of the layers that a phase computes from the same x.
struct Job {
  const Linear* linear;
  float* y;
  size_t ldy;
  bool add;  // to what y holds
};

// The experts of a phase and whom they concern; null where the base acts alone.
struct PhaseMixture {
  const Weights* weights = nullptr;
  const TokenSet* token_set = nullptr;
  LayerGates gates;
  MixPhase phase;

  bool active() const { return !phase.spans.empty(); }
  void clear() { phase.spans.clear(); }

  // Whether the phase has this layer, and experts there.
  bool has(int layer) const {
    return active() && layer + 1 < int(phase.first.size()) &&
           phase.first[layer] < phase.first[layer + 1];
  }

  // What rank row r of a span counts for a token: its adapter's weight, times the row's gate.
  float factor(int token, const Span& span, int r) const {
    const int row = token_set->rows[token];
    const float weight = weights->at(weights->sum_weights, row, span.column);
    return weight == 0 ? 0.0f : weight * gates.at(row, span, r);
  }
};

template <class T>
class MixtureLinear {
 public:
  typedef Read<T> X;  // of x and z

  // `sets`: the weights of all layers, some of which may have their own.
  void reserve(int rows, int width, std::initializer_list<const Weights*> sets) {
    z_.resize(size_t(rows) * width);
    for (const Weights* weights : sets) {
      if (weights->is_linear() || weights->routed.any()) raw_.resize(size_t(rows) * width);
      if (weights->routed.any()) chosen_.resize(size_t(rows) * width);  // spans are fewer
    }
  }

  // For layers with weights in 8 bits; `widest`: of their inputs.
  void reserve_quantized(int rows, int widest) { quantized_.reserve(rows, widest); }

  // A row of x as such layers read it.
  void quantize(int row, const X* x, int inputs) { quantized_.set(row, x, inputs); }

  // What layers read beside x: z of all tokens, and where asked for x in 8 bits.
  // Every thread calls it.
  void prepare(Team& team, const PhaseMixture& mixture, bool quantized, int rows, const X* x,
               size_t ldx, int inputs) {
    const int first = quantized ? rows : 0;
    const auto quantize_row = [&](int row) { quantize(row, x + row * ldx, inputs); };
    if (!mixture.active()) {
      if (quantized) team.share(rows, quantize_row);
      return;
    }
    const MixPhase& phase = mixture.phase;
    const Weights& weights = *mixture.weights;
    const TokenSet& token_set = *mixture.token_set;
    const auto shrink_task = [&](int index) {
      if (index < first) return quantize_row(index);
      const ShrinkTask& task = phase.tasks[index - first];
      const Span& span = phase.spans[task.span];
      const int end = std::min(task.row + SHRINK_ROWS, span.expert.shrunk());
      const bool is_bottleneck = span.expert.is_bottleneck();
      const int last = int(phase.tasks.size()) - 1;
      const ShrinkTask& next = phase.tasks[std::min(last, index - first + team.threads())];
      const T* later = static_cast<const T*>(phase.spans[next.span].expert.a);
      shrink<T>(span.expert, task.row, end, x, ldx, inputs, token_set.members[span.column],
             later + size_t(next.row) * inputs, [&](int token, int row, float value) {
               if (!is_bottleneck && weights.combines(token_set.rows[token]))
                 raw_[size_t(token) * phase.width + span.offset + row] = value;
               else
                 put(mixture, span, token, row, value);
             });
    };
    const bool combines = weights.is_linear() || weights.routed.any();
    const bool alone = combines && size_t(rows) * phase.width <= ALONE;
    const auto combine_row = [&](int token) { combine_token(mixture, token); };
    team.share(first + int(phase.tasks.size()), shrink_task, [&] {
      for (int token = 0; alone && token < rows; token++) combine_row(token);
    });
    if (combines && !alone) team.share(rows, combine_row);
  }

  // Outputs of panels [first, last) of a job's layer: base, bias, mixture.
  void compute(const Job& job, int layer, const PhaseMixture& mixture, int rows, const X* x,
               size_t ldx, int first, int last) {
    const Linear& linear = *job.linear;
    const int begin = first * PANEL, end = std::min(last * PANEL, linear.outputs);
    const MixPhase& phase = mixture.phase;
    const int first_span = mixture.active() ? phase.first[layer] : 0;
    const int last_span = mixture.active() ? phase.first[layer + 1] : 0;
    // Pieces of rows are too short for the hardware to foresee: they come while others are used.
    if (first_span < last_span)
      prefetch_expand<T>(phase.spans[first_span].expert, linear.outputs, begin, end);
    if (linear.is_int8)
      multiply(job, rows, quantized_.rows(linear.inputs), begin, end);
    else
      multiply(job, rows, Rows<T>{x, ldx}, begin, end);
    if (linear.bias)
      for (int r = 0; r < rows; r++)
        for (int i = begin; i < end; i += LANES) {
          float* y = job.y + r * job.ldy + i;
          store_some(y, load_some(y, end - i) + load_some(linear.bias + i, end - i), end - i);
        }
    if (mixture.active()) add_experts(mixture, layer, linear.outputs, begin, end, job.y, job.ldy);
  }

  // Adds the experts of one layer of an active phase to outputs [begin, end) of y.
  void add_experts(const PhaseMixture& mixture, int layer, int outputs, int begin, int end,
                   float* y, size_t ldy) {
    const MixPhase& phase = mixture.phase;
    const int last = phase.first[layer + 1];
    for (int s = phase.first[layer]; s < last; s++) {
      const Span& next = phase.spans[std::min(s + 1, last - 1)];
      expand<T>(phase.spans[s], next.expert, z_.data(), phase.width, members(mixture, s), outputs,
             begin, end, y, ldy);
    }
  }

  // All jobs, panels shared by the team.
  void run(Team& team, const Job* jobs, int count, const PhaseMixture& mixture, int rows,
           const X* x, size_t ldx) {
    run(team, jobs, count, mixture, rows, x, ldx, [](int, int) {});
  }

  // The same; `beside` is called with outputs [begin, end) once they are computed.
  template <class Beside>
  void run(Team& team, const Job* jobs, int count, const PhaseMixture& mixture, int rows,
           const X* x, size_t ldx, const Beside& beside) {
    int total = 0;
    for (int j = 0; j < count; j++) total += ceil_div(jobs[j].linear->outputs, PANEL);
    const int chunk = panels_a_task(total, team.threads(), rows);
    int tasks = 0;
    for (int j = 0; j < count; j++)
      tasks += ceil_div(ceil_div(jobs[j].linear->outputs, PANEL), chunk);
    team.share(tasks, [&](int task) {
      int layer = 0, panels = ceil_div(jobs[0].linear->outputs, PANEL);
      while (task >= ceil_div(panels, chunk)) {
        task -= ceil_div(panels, chunk);
        panels = ceil_div(jobs[++layer].linear->outputs, PANEL);
      }
      const int first = task * chunk, last = std::min(panels, first + chunk);
      compute(jobs[layer], layer, mixture, rows, x, ldx, first, last);
      beside(first * PANEL, std::min(last * PANEL, jobs[layer].linear->outputs));
    });
  }

  // Several tasks a thread even out what other processes take away. Few rows take whole groups of
  // panels, if that leaves each thread two tasks.
  static int panels_a_task(int panels, int threads, int rows) {
    const int chunk = std::min(8, std::max(1, panels / (threads * 4)));
    const int side = side_by_side(rows, panels / (threads * 2));
    return std::max(1, (chunk + side / 2) / side) * side;
  }

 private:
  static constexpr size_t ALONE = 2048;  // elements of z: fewer are not worth a barrier

  // z of one rank row from its inner product, under given weights.
  void put(const PhaseMixture& mixture, const Span& span, int token, int row, float value) {
    const Expert& expert = span.expert;
    X* z = &z_[size_t(token) * mixture.phase.width + span.offset];
    if (expert.is_bottleneck())
      value = activate(expert.bias ? value + expert.bias[row] : value, expert.activation);
    store_some(z + row, splat(times(mixture.factor(token, span, row), value)), 1);
    if (row + 1 < expert.shrunk()) return;
    if (expert.has_up_bias)
      store_some(z + row + 1,
                 splat(times(mixture.factor(token, span, row + 1), expert.bias[row + 1])), 1);
    if (expert.rank % 2) z[expert.rank] = X{};
  }

  // z of a token whose weights are more than given ones.
  void combine_token(const PhaseMixture& mixture, int token) {
    static thread_local std::vector<float> folded;
    const Weights& weights = *mixture.weights;
    const MixPhase& phase = mixture.phase;
    const int row = mixture.token_set->rows[token];
    if (!weights.combines(row)) return;
    const size_t at = size_t(token) * phase.width;
    float* chosen = weights.routed.acts(row) ? &chosen_[token * phase.spans.size()] : nullptr;
    if (chosen) choose(weights, phase, row, &raw_[at], chosen);
    combine(weights, mixture.gates, phase, row, chosen, &raw_[at], &z_[at], folded);
  }

  // The tokens that a span acts on; those that layer routing passed by are left out.
  const std::vector<int>& members(const PhaseMixture& mixture, int s) const {
    static thread_local std::vector<int> kept;
    const Weights& weights = *mixture.weights;
    const int column = mixture.phase.spans[s].column;
    const std::vector<int>& all = mixture.token_set->members[column];
    if (!weights.routed.any() || mixture.phase.spans[s].expert.is_bottleneck()) return all;
    kept.clear();
    for (int token : all) {
      const int row = mixture.token_set->rows[token];
      const bool is_chosen = weights.routed.acts(row) &&
                             chosen_[token * mixture.phase.spans.size() + s] != 0;
      if (is_chosen || weights.given(row, column)) kept.push_back(token);
    }
    return kept;
  }

  // Outputs [begin, end) of the base; W is the format of the layer's weights.
  template <class W>
  static void multiply(const Job& job, int rows, const Rows<W>& x, int begin, int end) {
    const int inputs = job.linear->inputs;
    const W* packed = static_cast<const W*>(job.linear->packed) + begin * packed_depth<W>(inputs);
    multiply_panels(rows, x, packed, end - begin, inputs, job.y + begin, job.ldy, job.add);
  }

  std::vector<X> z_;
  std::vector<float> raw_, chosen_;
  QuantizedRows quantized_;
};

}  // namespace mix::MIX_ISA
