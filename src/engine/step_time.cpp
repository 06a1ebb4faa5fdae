#include "engine/step_time.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "model/quantization.h"
#include "model/stages.h"

namespace deepinfer {
namespace {

constexpr int kLeastChunk = 64;  // tokens

// One step's part of a replica.
struct Rows {
  double tokens = 0;   // that pass through the layers
  double sampled = 0;  // rows that the head and the sampler see
  double context = 0;  // tokens that each one looks back on, in the mean
  double cached = 0;   // tokens whose keys and values are read
};

// The largest part that a rank has of query heads, and of KV heads.
struct Shares {
  double heads = 1, kv = 1;
};

Shares shares_of(const ModelConfig& w, int ranks) {
  if (ranks == 1) return {};
  const int group = std::max(w.heads / std::max(w.kv_heads, 1), 1);
  int heads = 0, kv = 0;
  for (int r = 0; r < ranks; ++r) {
    const int first = w.heads * r / ranks, end = w.heads * (r + 1) / ranks;
    if (end == first) continue;
    heads = std::max(heads, end - first);
    kv = std::max(kv, (end - 1) / group - first / group + 1);
  }
  return {static_cast<double>(heads) / w.heads, static_cast<double>(kv) / w.kv_heads};
}

class Timer {
 public:
  Timer(const ModelWork& work, const DeviceSpeed& speed, const LinkSpeed& link, const Split& split)
      : w_(work),
        speed_(speed),
        link_(link),
        split_(split),
        shares_(shares_of(work.shape, split.tensor)),
        stages_(stage_layers(work.shape, split.pipeline)) {}

  // Of a stage with so many layers.
  double layers(double count, const Rows& rows) const {
    const double attention =
        product(w_.attention_bytes * shares_.heads, w_.attention_params * shares_.heads, rows.tokens);
    const double mlp = product(w_.mlp_bytes / split_.tensor, w_.mlp_params / split_.tensor, rows.tokens);
    const double cache_rate = speed_.cache_per_second > 0 ? speed_.cache_per_second : speed_.bytes_per_second;
    const double cache = rows.cached * w_.kv_bytes * shares_.kv / cache_rate;
    const double scores = 4.0 * rows.tokens * rows.context * w_.shape.heads * shares_.heads *
                          w_.shape.head_dim / speed_.flop_per_second;
    const double besides = speed_.layer_seconds + rows.tokens * speed_.token_seconds;
    return count * (attention + mlp + std::max(cache, scores) + besides +
                    2 * sum_of_ranks(rows.tokens * w_.shape.hidden));
  }

  // Embedding, head and sampling, which the first stage does.
  double ends(const Rows& rows) const {
    double s = speed_.step_seconds + rows.sampled * speed_.row_seconds;
    if (rows.sampled > 0)
      s += product(w_.head_bytes / split_.tensor, w_.head_params / split_.tensor, rows.sampled);
    if (split_.tensor > 1) {
      s += sum_of_ranks(rows.tokens * w_.shape.hidden);
      const double sent = rows.sampled * w_.shape.vocab_size * 4.0 * (split_.tensor - 1) / split_.tensor;
      s += link_.seconds + sent / link_.bytes_per_second;
    }
    return s;
  }

  // To the next stage, and at the end back to the first.
  double hop(const Rows& rows) const {
    if (split_.pipeline == 1) return 0;
    return link_.seconds + rows.tokens * w_.shape.hidden * w_.value_bytes / link_.bytes_per_second;
  }

  // Through all stages.
  double step(const Rows& rows) const {
    return layers(w_.shape.layers, rows) + ends(rows) + split_.pipeline * hop(rows);
  }

  // How long the slowest stage is at work.
  double slowest(const Rows& rows) const {
    return std::max(layers(stages_.others, rows), layers(stages_.first, rows) + ends(rows)) + hop(rows);
  }

 private:
  double product(double bytes, double params, double tokens) const {
    const double read = bytes / speed_.bytes_per_second,
                 multiply = 2 * params * tokens / speed_.flop_per_second;
    return std::max(read, multiply) + (1 - speed_.overlap) * std::min(read, multiply);
  }

  // Of so many elements, on every rank: each sends and gets all but its own part twice.
  double sum_of_ranks(double elements) const {
    const int n = split_.tensor;
    if (n == 1) return 0;
    return link_.seconds * std::log2(n) +
           2.0 * (n - 1) / n * elements * w_.value_bytes / link_.bytes_per_second;
  }

  const ModelWork& w_;
  const DeviceSpeed& speed_;
  const LinkSpeed& link_;
  const Split& split_;
  const Shares shares_;
  const StageLayers stages_;
};

// A step of prompts that is `tokens` long, half of a prompt behind its tokens.
Rows prompt_rows(const Load& load, double tokens) {
  const double prompts = std::max(tokens / load.prompt, 0.0);
  return {.tokens = tokens, .sampled = prompts, .context = load.prompt / 2.0, .cached = tokens};
}

Rows decode_rows(const Load& load, double sequences) {
  const double context = load.prompt + load.answer / 2.0;
  return {.tokens = sequences, .sampled = sequences, .context = context, .cached = sequences * context};
}

}  // namespace

StageLayers stage_layers(const ModelConfig& model, int stages) {
  StageLayers out;
  for (int s = 0; s < stages; ++s) {
    const Result<LayerRange> range = plan_stage(model, s, stages);
    DI_CHECK(range.ok(), "{}", range.ok() ? "" : range.error().message);
    const int count = range->last - range->first;
    if (s == 0)
      out.first = count;
    else
      out.others = std::max(out.others, count);
  }
  return out;
}

ModelWork model_work(const Checkpoint& checkpoint, DType kv_dtype, double value_bytes) {
  const ModelConfig& c = checkpoint.config;
  const double h = c.hidden, q = double{1} * c.heads * c.head_dim, kv = double{1} * c.kv_heads * c.head_dim;
  ModelWork w{.shape = c,
              .attention_params = 2 * h * (q + kv),
              .mlp_params = 3 * h * c.ffn,
              .head_params = h * c.vocab_size,
              .value_bytes = value_bytes};
  for (const auto& [name, t] : checkpoint.weights.tensors) {
    const auto bytes = static_cast<double>(loaded_bytes(checkpoint.weights, name, t));
    if (name.find(".self_attn.") != std::string::npos) w.attention_bytes += bytes / c.layers;
    if (name.find(".mlp.") != std::string::npos) w.mlp_bytes += bytes / c.layers;
    if (name.starts_with("lm_head.") || (c.tied_head && name.starts_with("model.embed_tokens.")))
      w.head_bytes += bytes;
  }
  w.kv_bytes = 2 * kv * info(kv_dtype).block_bytes / info(kv_dtype).block_elems;
  return w;
}

StepRates predict_rates(const ModelWork& work, const SplitSpeed& speed, const Split& split,
                        const Load& load) {
  const Timer alone(work, speed.alone, speed.link, split), busy(work, speed.busy, speed.link, split);
  StepRates out;
  // One prompt is cut into chunks, which follow each other through the stages: at least so many that two are
  // there for each (engine/scheduler_plan.cpp), unless they become too short.
  const int pieces = split.pipeline == 1 ? 1 : std::clamp(load.prompt / kLeastChunk, 1, 2 * split.pipeline);
  const int chunks = std::max((load.prompt + load.chunk - 1) / load.chunk, pieces);
  Rows piece = prompt_rows(load, static_cast<double>(load.prompt) / chunks);
  piece.sampled = 1.0 / chunks;
  out.first_token_seconds = alone.step(piece) + (chunks - 1) * alone.slowest(piece);
  out.stream_per_second = 1 / alone.step(decode_rows(load, 1));

  const double replicas = split.data;
  const Rows full = prompt_rows(load, load.chunk);
  out.prefill_per_second = replicas * load.chunk / busy.slowest(full);
  // As many steps of disjoint sequences are under way as there are stages.
  const int batch = std::max(load.batch, 1), flights = std::min(batch, split.pipeline);
  const Rows group = decode_rows(load, static_cast<double>(batch) / flights);
  const double round = std::max(busy.step(group), flights * busy.slowest(group));
  out.decode_per_second = replicas * batch / round;
  out.requests_per_second = 1 / (load.prompt / out.prefill_per_second + load.answer / out.decode_per_second);
  return out;
}

}  // namespace deepinfer
