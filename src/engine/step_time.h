// How long steps take, predicted: what must be read over a memory's bandwidth, what must be multiplied over a
// device's rate, and what ranks send each other over their link. Pure: figures in, figures out.
#pragma once

#include "model/checkpoint.h"
#include "tensor/dtype.h"

namespace deepinfer {

// How many devices serve a model together, and as what: data replicas, each of pipeline stages, each of
// tensor ranks that share every layer.
struct Split {
  int tensor = 1, pipeline = 1, data = 1;

  int devices() const { return tensor * pipeline * data; }
  bool operator==(const Split&) const = default;
};

// What a device reaches, not what its data sheet says.
struct DeviceSpeed {
  double bytes_per_second = 0;  // of weights
  double cache_per_second = 0;  // of keys and values, bytes; 0: as weights
  double flop_per_second = 0;   // of products with these weights
  double overlap = 1;        // of the lesser of reading weights and multiplying: what hides behind the other
  double layer_seconds = 0;  // of a layer besides: gaps between kernels, norms
  double token_seconds = 0;  // of a layer besides, for each token of the step
  double step_seconds = 0;   // of a step besides
  double row_seconds = 0;    // of a sampled row besides
};

// Between ranks.
struct LinkSpeed {
  double bytes_per_second = 0;
  double seconds = 0;  // that a call takes however little it carries
};

struct SplitSpeed {
  DeviceSpeed busy;   // of a device while all of them work
  DeviceSpeed alone;  // while one replica works
  LinkSpeed link;
};

// What of a model a step reads and multiplies.
struct ModelWork {
  ModelConfig shape;
  // Of a layer; of the head. Weights, as elements and as bytes when loaded.
  double attention_params = 0, mlp_params = 0, head_params = 0;
  double attention_bytes = 0, mlp_bytes = 0, head_bytes = 0;
  double kv_bytes = 0;     // of a token's keys and values in a layer
  double value_bytes = 4;  // of an element that ranks exchange
};
ModelWork model_work(const Checkpoint& checkpoint, DType kv_dtype, double value_bytes);

// A workload, the same requests again and again.
struct Load {
  int prompt = 1024, answer = 256;  // tokens
  int chunk = 2048;                 // tokens that a step takes of prompts
  int batch = 0;                    // sequences that a replica decodes together; 0: as many as fit
};

struct StepRates {
  double first_token_seconds = 0;  // of a prompt, when nothing else runs
  double stream_per_second = 0;    // tokens of one answer, when nothing else runs
  double prefill_per_second = 0;   // tokens of prompts, all replicas busy with them
  double decode_per_second = 0;    // tokens of answers, all replicas busy with `batch` of them
  double requests_per_second = 0;  // one after the other of both kinds of work
};

StepRates predict_rates(const ModelWork& work, const SplitSpeed& speed, const Split& split, const Load& load);

// How many layers the first stage has, which has embedding and head besides, and the largest of the others.
struct StageLayers {
  int first = 0, others = 0;
};
StageLayers stage_layers(const ModelConfig& model, int stages);  // no more stages than layers

}  // namespace deepinfer
