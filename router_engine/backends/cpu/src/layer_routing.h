// Layer routing (arrow), as router_engine.kernels.reference.layer_routing: a token chooses among
// its candidates by what the layer reads, and those weights are added to the given ones.
#pragma once

#include "lowrank.h"

namespace mix::MIX_ISA {

// A token's weights by span of a phase, from its raw inner products: x . v = z . prototype.
inline void choose(const Weights& weights, const MixPhase& phase, int row, const float* raw,
                   float* chosen) {
  typedef std::pair<float, int> Scored;  // score, span
  static thread_local std::vector<Scored> scored;
  const LayerRoutedTokens& routed = weights.routed;
  std::fill_n(chosen, phase.spans.size(), 0.0f);
  for (size_t layer = 0; layer + 1 < phase.first.size(); layer++) {
    scored.clear();
    for (int s = phase.first[layer]; s < phase.first[layer + 1]; s++) {
      const Span& span = phase.spans[s];
      if (!weights.may_choose(row, span.column)) continue;
      float score = 0;
      for (int r = 0; r < span.expert.rank; r++)
        score += raw[span.offset + r] * span.expert.prototype[r];
      // What is not a number comes first, as in the reference: sorting needs an order.
      scored.push_back({orderly(std::fabs(score)), s});
    }
    const int count = std::min(int(scored.size()), routed.top_k[row]);
    const auto better = [](const Scored& a, const Scored& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    };
    std::partial_sort(scored.begin(), scored.begin() + count, scored.end(), better);
    float total = 0;
    for (int i = 0; i < count; i++) {
      float& weight = chosen[scored[i].second];
      weight = std::exp((scored[i].first - scored[0].first) / routed.temperature[row]);
      total += weight;
    }
    for (int i = 0; i < count; i++) chosen[scored[i].second] /= total;
  }
}

}  // namespace mix::MIX_ISA
