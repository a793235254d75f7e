// What Python hands over. Layouts are mirrored in router_engine/backends/cpu/library.py.
#pragma once

#include "attention.h"
#include "int8.h"
#include "lowrank.h"

namespace mix::MIX_ISA {

struct Linear {
  const void* packed;  // see gemm.h and int8.h
  const float* bias;   // [outputs] or null
  int32_t inputs;
  int32_t outputs;
  int32_t module;  // its index in every adapter's list of experts
  int32_t is_int8;
};

struct Layer {
  Linear q, k, v, o, gate, up, down;
  const float* attention_norm;  // [hidden]
  const float* mlp_norm;        // [hidden]
  const float* q_norm;          // [head_dim] or null
  const float* k_norm;
  void* keys;  // [slots, kv_heads, head_dim]
  void* values;
  int64_t window;  // 0: all positions are seen
  // Sites beside linear layers, by their index in every adapter's list of experts.
  int32_t parallel, serial;  // bottlenecks of the feed-forward module
  int32_t prompt;            // of the attention
};

struct ModelSpec {
  const Layer* layers;
  const void* embedding;  // [vocabulary, hidden]
  const float* final_norm;
  const float* frequencies;  // [head_dim / 2], radians a position
  Linear head;
  int32_t num_layers;
  int32_t hidden;
  int32_t heads;
  int32_t kv_heads;
  int32_t head_dim;
  int32_t intermediate;
  int32_t block_size;
  float epsilon;
  float attention_scale;
  float rope_scale;
};

struct Step {
  const int64_t* token_ids;     // [tokens]
  const int32_t* positions;     // [tokens]
  const Row* rows;              // [num_rows]
  const int32_t* blocks;        // block tables, one after another
  const int32_t* sample_index;  // [samples]: tokens whose logits are wanted
  float* logits;                // [samples, logits_stride]
  int64_t* best;                // [samples]: index of the highest logit
  float* normaliser;            // [samples]: log of the sum of their exponentials
  Weights weights;              // columns 0: the base alone
  Weights below_probe;          // the same of the layers below probe_layer
  float* hidden_states;         // [tokens, hidden]: what enters layer probe_layer, or null
  uint8_t* finite;              // [tokens]: whether their last states have a norm, or null
  int32_t tokens;
  int32_t num_rows;
  int32_t samples;
  int32_t logits_stride;
  int32_t threads;
  int32_t probe_layer;  // 0: all layers run under `weights`
};

}  // namespace mix::MIX_ISA
