// The parameters of the operations. An operation is a phase of a layer, not a primitive: about five make a
// layer, because that is what five kernels (GPU) or five barriers (CPU) a layer need. A backend may split a
// phase; models never see that.
//
// T tokens, B rows, S rows whose logits are wanted, V vocabulary, H hidden. A: Context::activation; what has
// no dtype here is F32.
#pragma once

#include <cstdint>
#include <span>

#include "ops/linear_weight.h"
#include "tensor/kv_cache.h"
#include "tensor/step_batch.h"
#include "tensor/tensor.h"

namespace deepinfer {

// Some elements of a dimension, one behind the other.
struct Interval {
  int64_t first = 0, count = 0;
  int64_t end() const { return first + count; }
};

struct Norm {
  Tensor weight;  // [H] F32
  float eps = 1e-5f;
};

// State of the rows that stays on the device between steps.
struct SlotTable {
  Tensor last_token;  // [slots] I32
};

struct EmbedParams {
  const StepBatch* batch = nullptr;
  const SlotTable* slots = nullptr;
  const LinearWeight* table = nullptr;   // [V, H]; with several ranks: this one's rows
  Tensor out;                            // [T, H], summed over ranks
  std::span<const Interval> vocab = {};  // [ranks] tokens whose rows each rank has; empty: one rank
  Interval own;                          // Backends: of vocab, this rank's. The rows of others become 0
};

// cos and sin of every token's angles, once a step for all layers. Angles are computed in F32, as
// transformers does.
struct RopeParams {
  const StepBatch* batch = nullptr;
  Tensor inv_freq;     // [rotary_dim / 2] F32
  float scale = 1.0f;  // of cos and sin (attention factor of some scalings)
  Tensor out;          // [T, rotary_dim]: cos [rotary_dim / 2], then sin
};

// x = norm(hidden); q, k, v = W x + b; q/k norm; RoPE; append k, v to the cache.
struct QkvParams {
  const StepBatch* batch = nullptr;
  Tensor hidden;  // [T, H]
  Norm norm;
  const LinearWeight* weight =
      nullptr;          // parts q [heads * dim], k [kv_heads * dim_k], v [kv_heads * dim_v]; concatenated
  Tensor bias;          // [rows] F32, or none
  Norm q_norm, k_norm;  // [dim] over each head, or none
  Tensor rope;          // from RopeParams, or none
  bool rope_interleaved = false;  // pairs (2i, 2i+1) instead of (i, i + rotary_dim/2)
  KvLayer kv;
  int heads = 0;  // query heads of this rank; kv heads are the cache's
  Tensor q;       // out: [T, heads * dim] A
};

// Query head h reads KV head (h + skip) / size.
struct HeadGroups {
  int size = 0;  // query heads that share a KV head; 0: heads / KV heads
  int skip = 0;  // of the first KV head's that are another rank's
};

// Causal attention of every token over its row's cache (its own position included).
struct AttentionParams {
  const StepBatch* batch = nullptr;
  Tensor q;  // [T, heads * head_dim_k] A
  KvLayer kv;
  int heads = 0;
  HeadGroups groups;
  float scale = 0;     // of the scores
  float soft_cap = 0;  // 0: none
  Tensor out;          // [T, heads * head_dim_v] A
};

// residual += W x + b, summed over ranks: each has some columns of W and the whole residual, rank 0 the bias.
struct ProjectParams {
  Tensor x;                              // [T, K] A
  const LinearWeight* weight = nullptr;  // [H, K]
  Tensor bias;                           // [H] F32, or none
  Tensor residual;                       // [T, H] in and out
  // Backends: residual = W x + b. What ranks other than 0 bring to the sum.
  bool replace = false;
};

enum class Activation : uint8_t { kSilu, kGeluTanh };

// out = act(W_gate x) * (W_up x) with x = norm(hidden)
struct GateUpParams {
  Tensor hidden;  // [T, H]
  Norm norm;
  const LinearWeight* weight = nullptr;  // parts gate, up; paired
  Tensor bias;                           // [2 * F] F32 (gate, then up), or none
  Activation activation = Activation::kSilu;
  Tensor out;  // [T, F] A
};

// Logits of the tokens in batch.logit_token only.
struct HeadParams {
  const StepBatch* batch = nullptr;
  Tensor hidden;  // [T, H]
  Norm norm;
  const LinearWeight* weight = nullptr;  // [V, H]; with several ranks: some rows of it
  float scale = 1.0f;
  Tensor logits;  // [S, V] F32; with several ranks complete on rank 0, unused on others
  std::span<const Interval> vocab = {};  // [ranks] which rows each rank has; empty: one rank
};

struct LogitBias {
  int32_t token = 0;
  float bias = 0;
};

// How one row of logits becomes a token. The one order of the steps:
//
//   mask and banned, bias, penalties, late_bias (DRY), top_n_sigma, temperature (dynatemp), min_p, top_k,
//   typical_p, top_p, xtc, draw
//
// Those of vLLM stand in vLLM's order. llama.cpp's samplers mean what they mean there, each alone; between
// them and the others its chain differs in that it sets the temperature last. So here min_p, top_k,
// typical_p, top_p and xtc see probabilities with the temperature in them, and dynatemp's entropy is that of
// all tokens (that top_n_sigma left), not of what top_k, top_p and min_p leave. With mirostat the cuts
// (top_n_sigma, min_p, top_k, typical_p, top_p, xtc) and dynatemp are off, as in llama.cpp; bias, penalties
// and late_bias are not.
//
// Each step sees the probabilities of what the steps before it left, scaled to 1:
//   top_n_sigma  logits below the largest - n * the standard deviation of all finite logits go
//   dynatemp     temperature -+ range: low + (high - low) * (entropy / log V) ^ exponent, low at least 0
//   typical_p    the tokens whose -log p is nearest to the entropy stay, the fewest that together have more
//                than typical_p, and those as near as the last of them
//   xtc          when the coin falls below its probability: of the tokens with at least the threshold all go
//                but the least likely one. A threshold below 1e-7 counts as that; above 0.5 it is off
//   mirostat     1: the k most likely stay, k from the slope of the 100 most likely and mu; 2: those whose
//                surprise (-log2 p) is at most mu, or the most likely one
//
// Noise and coin are functions of (seed, position) alone: the same whatever else runs.
struct SampleRow {
  int32_t slot = 0;
  uint64_t seed = 0;
  int64_t position = 0;      // of the token to be drawn
  float temperature = 1.0f;  // 0: argmax, the lowest id of equals; no cut matters then
  float top_p = 1.0f;
  float min_p = 0.0f;
  int32_t top_k = 0;                        // 0: all
  float presence_penalty = 0.0f;            // of tokens in `output`
  float frequency_penalty = 0.0f;           // of tokens in `output`, times their count
  float repetition_penalty = 1.0f;          // of tokens in `prompt` or `output`
  std::span<const int32_t> prompt, output;  // read only when a penalty is on
  std::span<const LogitBias> bias;
  std::span<const LogitBias> late_bias;  // added after the penalties (DRY's); a token at most once
  std::span<const int32_t> banned;       // tokens that cannot be drawn now (bad_words, min_tokens)
  const uint32_t* mask = nullptr;        // [ceil(V / 32)] bit set = allowed (grammar, allowed ids); null: all
  int32_t logprobs = -1;                 // -1: none; 0: of the drawn token; k: and of the k most likely ones

  // llama.cpp's; off unless said.
  float typical_p = 1.0f;
  float top_n_sigma = -1.0f;
  float xtc_probability = 0.0f;
  float xtc_threshold = 0.1f;
  float dynatemp_range = 0.0f;
  float dynatemp_exponent = 1.0f;
  int32_t mirostat = 0;      // 1, 2
  float mirostat_mu = 0.0f;  // the sequence's state: the next one follows from SampleParams::surprise

  bool greedy() const { return temperature < 1e-5f || (top_k == 1 && mirostat == 0); }  // 1e-5: vLLM's
  bool has_xtc() const { return xtc_probability > 0 && xtc_threshold <= 0.5f; }
  // Needs more than vLLM's steps: temperature, min_p, top_k, top_p.
  bool shaped() const {
    return !greedy() &&
           (mirostat != 0 || typical_p < 1 || top_n_sigma > 0 || dynatemp_range > 0 || has_xtc());
  }
};

inline constexpr int32_t kMaxTopLogprobs = 20;  // as many as a request may ask for

struct SampleParams {
  Tensor logits;                    // [S, V] F32; changed in place
  std::span<const SampleRow> rows;  // [S]
  SlotTable* slots = nullptr;       // out: last_token of each row's slot
  Tensor token;                     // out: [S] I32
  Tensor logprob;                   // out: [S] F32, of the raw logits; rows with logprobs >= 0
  Tensor top_token, top_logprob;  // out: [S, max k] I32, F32; rows with logprobs > 0; -1 past the finite ones
  Tensor surprise;  // out: [S] F32, -log2 of the drawn token among what was left; rows with mirostat
};

// How likely given tokens are under raw logits: a prompt's own, for example.
struct ScoreParams {
  Tensor logits;                  // [S, V] F32
  Tensor target;                  // [S] I32 tokens
  int32_t top = 0;                // most likely tokens to tell besides, at most kMaxTopLogprobs
  Tensor logprob;                 // out: [S] F32
  Tensor rank;                    // out: [S] I32: tokens with at least the target's logit
  Tensor top_token, top_logprob;  // out: [S, >= top] I32, F32; -1 and -inf past the finite ones
};

// dst <- src, whole blocks of all layers of a group.
struct BlockCopy {
  int32_t src = 0;
  int32_t dst = 0;
};

}  // namespace deepinfer
