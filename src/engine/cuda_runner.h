// Runs steps on a CUDA device: several in flight, decode steps as captured graphs.
//
// A step is one copy of its arrays, a forward and a sample part, and one copy of the tokens back. All go to
// the device's stream in order; the host only waits for the event behind the last. Tokens stay on the device
// for the next step, so that it can be launched before the host has seen them.
//
// One of several (engine/cuda_ranks.h) it holds a rank's share of every layer. All ranks run the same steps,
// each in a thread of its own with its own device; rank 0 samples, and the others get its tokens on the
// device at the next step's beginning. What throws ends the group.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/cuda/sample.h"
#include "backend/cuda_gpu.h"
#include "backend/cuda_step.h"
#include "comm/nccl_communicator.h"
#include "engine/measured_memory.h"
#include "engine/model_runner.h"
#include "engine/step_writer.h"
#include "model/model.h"

namespace deepinfer {

struct CudaRunnerOptions {
  int max_num_seqs = 256;
  int max_num_batched_tokens = 2048;
  int max_model_len = 0;
  int block_size = 16;
  DType kv_dtype = DType::kBF16;
  DType activation = DType::kBF16;  // what the model was loaded with
  bool enforce_eager = false;       // no graphs
  // Rows that decode graphs are captured for, ascending; empty: those of device/tuning.h. Always up to
  // max_num_seqs.
  std::vector<int> graph_sizes;
  int pdl_rows = 32;  // graphs of at most so many rows let kernels overlap, where the card can
  int max_in_flight = 2;
  size_t logits_bytes = 0;  // where a step's logits are more, they are computed in pieces of it; 0: in one
  Profiler* profiler = nullptr;  // of the operations; outlives the runner
  PlanCache plan_cache;          // how much of what is left becomes KV cache
};

// What a rank of several has besides.
struct CudaPeers {
  std::unique_ptr<NcclCommunicator> comm;  // on the runner's stream
  Communicator* host = nullptr;         // of the ranks' threads, while they are at work; outlives the runner
  std::chrono::milliseconds timeout{};  // of a wait for the device that needs the others
};

// The rows that graphs are captured for.
std::vector<int> graph_sizes(const CudaRunnerOptions& options);

class CudaRunner final : public ModelRunner {
 public:
  // `model` was loaded on `gpu`. Allocates all that steps need, runs the largest one, captures the first
  // graphs, then maps the KV cache that plan_cache asks for. kMemory.
  static Result<std::unique_ptr<CudaRunner>> create(std::unique_ptr<cuda::Gpu> gpu,
                                                    std::unique_ptr<Model> model, CudaRunnerOptions options,
                                                    CudaPeers peers = {});
  ~CudaRunner() override;  // waits for the device

  const Info& info() const override { return info_; }
  const MeasuredMemory& measured() const { return measured_; }
  cuda::Gpu& gpu() { return *gpu_; }

  void launch_forward(const Step& step) override;
  void launch_sample(const Step& step) override;
  StepOutput wait(uint64_t step_id) override;  // rank 0's alone has tokens

  // Of ranks. The part of launch_sample that needs no other rank, and may fail for this step alone; it is
  // not called, or before launch_sample.
  void prepare_sample(const Step& step);
  // A step whose forward was launched is not sampled.
  void forget_step();
  bool done(uint64_t step_id);  // the oldest in flight
  // What the device waits for in vain ends: it can be freed. While no other thread is at work here.
  void leave(const std::string& reason);

  HeldMemory held_memory() const override;

  // Logits of the last forward, [S, V], after all before it: for tests and for quality measurements.
  std::vector<float> read_logits();

 private:
  // A row that samples: where its results stand, and what it asked for.
  struct Sampled {
    int32_t row = 0;
    int32_t logprobs = -1;
    bool mirostat = false;
  };
  // A row with targets, which stand one after another in the order of the rows.
  struct Scored {
    std::vector<int32_t> targets;
    int32_t top = 0;
  };
  // One of the steps in flight. The host's memory of it is pinned: copies read and write it while the host
  // goes on, so it is used again only after its step is done.
  struct Flight {
    Buffer step_block, sample_block, masks, output, scores;
    uint64_t id = 0;
    cuda::StepShape shape;
    bool padded = false;  // of a graph's shape
    std::vector<Sampled> sampled;
    std::vector<Scored> scored;
    bool copies_top = false;
    bool shaped = false;  // some row has llama.cpp's samplers
    cuda::Event done;
  };
  struct Graphs {
    // Ran once without a graph: libraries chose, code is loaded.
    bool forward_warm = false, sample_warm = false, shaped_warm = false;
    cuda::Graph forward, sample, shaped;  // shaped: the sampling of steps with Flight::shaped
  };
  // Where the sampled tokens stand in `output`, of rows up to max_num_seqs; the same of scores, of a step's
  // tokens.
  struct OutputLayout {
    size_t logprob = 0, surprise = 0, top_token = 0, top_logprob = 0, bytes = 0;
  };
  struct ScoreLayout {
    size_t rank = 0, top_token = 0, top_logprob = 0, bytes = 0;
  };

  CudaRunner() = default;
  Result<void> allocate();
  Result<void> allocate_state();
  Result<void> allocate_flights();
  Result<void> allocate_sampler(int32_t list_words);
  Result<void> reserve_cache();
  Result<void> prepare();
  Result<void> map_blocks(int64_t blocks);
  void run_trial(const Step& step);
  void run_largest_step();
  void capture_first();
  size_t capture_decode(int rows);
  size_t free_bytes();

  bool leads() const { return peers_.comm == nullptr || peers_.comm->rank() == 0; }
  void meet_ranks();
  void settle();
  void settle(const cuda::Event& end);
  [[noreturn]] void recover();
  void guarded(const std::function<void()>& body);
  void give_up(const char* why);
  [[noreturn]] void give_up_on_fault();
  void drop_step();
  void clean_up();
  Flight& flight(int in_order) { return flights_[(first_ + in_order) % flights_.size()]; }

  void forward(const Step& step);
  void send_deltas();
  void place_results(const cuda::StepShape& shape);
  void run_forward(const StepBatch& batch, const cuda::StepShape& shape);
  void sample(const Step& step);
  void pack_samples(const Step& step, Flight& f);
  void run_sample(const Flight& f);
  void sample_rows(int32_t first, const Tensor& logits, bool shaped);
  void run_scores(const Flight& f);
  void score_rows(int32_t first, const Tensor& logits);
  void read_scores(const Flight& f, StepOutput& output) const;
  Tensor piece_of(const Flight& f, int32_t first, int32_t count, bool scores);
  bool in_pieces(const cuda::StepShape& shape) const {
    return shape.logit_rows > piece_rows_ || shape.scored > 0;
  }
  cuda::DeviceBatch bounds(const Flight& f) const;
  cuda::Graph capture(const std::function<void()>& body, bool by_all);
  // Runs `body` as a graph of its own, once it ran without. by_all: it has calls that all ranks make.
  void replay(cuda::Graph& graph, bool& warm, const std::function<void()>& body, bool by_all);
  int graph_rows(const StepSummary& summary) const;

  std::unique_ptr<cuda::Gpu> gpu_;  // destroyed last
  CudaPeers peers_;                 // and before it this, when no graph is left
  std::unique_ptr<Model> model_;
  CudaRunnerOptions options_;
  Info info_;
  MeasuredMemory measured_;

  Buffer state_memory_, logits_memory_, sample_memory_, sample_scratch_, output_memory_, score_memory_;
  Buffer delta_memory_;
  Buffer pinned_deltas_;
  cuda::Range kv_range_, history_range_;
  cuda::StepState state_;
  cuda::StepShape largest_;
  int32_t delta_room_ = 0;
  Arena scratch_;
  Context context_;
  SlotTable slots_;
  std::unique_ptr<KvCache> kv_;
  cuda::DeviceSampleBlock sample_block_;
  OutputLayout output_layout_;
  ScoreLayout score_layout_;
  std::unique_ptr<StepWriter> writer_;

  std::vector<Flight> flights_;  // a ring
  int first_ = 0, in_flight_ = 0;
  std::vector<int> sizes_;          // of graphs; none: eager
  std::map<int, Graphs> graphs_;    // by rows
  bool captures_ = true;            // until one failed
  bool captures_sampling_ = true;   // the same of what only rank 0 captures
  bool prepared_ = false;           // by prepare_sample()
  cuda::DeviceBatch device_batch_;  // of the forward that was launched last
  StepSummary summary_;
  int32_t piece_rows_ = 0;  // rows that logits_memory_ holds
  Tensor logits_;           // of the forward that was launched last, or none when they come in pieces
  Tensor hidden_;           // then: what they are computed from, in the scratch arena behind hidden_end_
  size_t hidden_end_ = 0;
  std::vector<SampleRow> sample_rows_;
  cuda::Event deltas_sent_;
  std::string lost_;  // why the device is gone
};

}  // namespace deepinfer
