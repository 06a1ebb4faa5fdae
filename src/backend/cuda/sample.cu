// Sampling. A block of threads takes a row: S blocks for rows that are read as they are, and behind them as
// many as scratch has rows, which share the rows that are changed first (bias, banned tokens, penalties).
// Rows with llama.cpp's samplers are changed too, by a kernel of their own, which runs only where there are
// some.
//
// A row costs a pass over its logits for the largest, with top_k or top_p one or two more, in which the few
// candidates are put into shared memory and ranked there (a radix selection, which reads the whole row again
// only where thousands are nearly equal). The draw inverts the distribution cumulated by id: among the
// candidates or, without such, by a pass in which each warp sums a part of the row; then the part that the
// noise points at is searched.
#include <algorithm>

#include "backend/cuda.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/sample.h"
#include "backend/cuda/sample_block.cuh"
#include "backend/cuda/sample_layout.h"
#include "backend/cuda/sample_shape.cuh"
#include "backend/cuda_error.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace sampling {

struct Args {
  const float* logits = nullptr;  // [rows, stride] of the step's rows from first_row on
  int64_t stride = 0;
  int32_t vocab = 0;
  int32_t first_row = 0, rows = 0, scratch_rows = 0;
  int32_t block_shift = 0;  // log2 of the KV block
  const int32_t* changed = nullptr;
  const DeviceSampleRow* row = nullptr;
  const int32_t* lists = nullptr;
  const uint32_t* masks = nullptr;
  DeviceBatch batch;
  SampleOutputs out;
  float* scratch = nullptr;    // [scratch_rows][vocab rounded up to 4]
  uint32_t* counts = nullptr;  // as scratch; zero between rows
};

constexpr uint32_t kInPrompt = 1u << 31;

// Philox4x32-10, as cpu::noise_of(): twice 53 bits, at the top of 64.
struct Noise {
  uint64_t draw = 0, coin = 0;
};
__device__ inline Noise noise_of(uint64_t seed, int64_t position) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    c[0] = static_cast<uint32_t>(b >> 32) ^ c[1] ^ key0;
    c[2] = static_cast<uint32_t>(a >> 32) ^ c[3] ^ key1;
    c[1] = static_cast<uint32_t>(b);
    c[3] = static_cast<uint32_t>(a);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return {(static_cast<uint64_t>(c[0]) << 32 | c[1]) & ~uint64_t{2047},
          (static_cast<uint64_t>(c[2]) << 32 | c[3]) & ~uint64_t{2047}};
}

// The high 64 bits of the product.
__device__ inline uint64_t multiply_high(uint64_t a, uint64_t b) {
  const uint64_t a0 = static_cast<uint32_t>(a), a1 = a >> 32, b0 = static_cast<uint32_t>(b), b1 = b >> 32;
  const uint64_t middle = a1 * b0 + (a0 * b0 >> 32);
  const uint64_t other = a0 * b1 + static_cast<uint32_t>(middle);
  return a1 * b1 + (middle >> 32) + (other >> 32);
}

template <int kThreads, bool kShaped>
class RowSampler : Block<kThreads, kShaped> {
  using B = Block<kThreads, kShaped>;
  using S = Shape<kThreads>;

 public:
  __device__ RowSampler(const Args& args, int32_t index)
      : a_(args), s_(B::shared()), row_(args.row[index]), index_(index) {}

  __device__ void run(int32_t scratch_row) {
    Logits raw{.x = a_.logits + (index_ - a_.first_row) * a_.stride, .vocab = a_.vocab};
    Logits x = raw;
    if (row_.mask >= 0) x.mask = a_.masks + static_cast<int64_t>(row_.mask) * ((a_.vocab + 31) / 32);
    const bool changed = (row_.flags & kSampleChanged) != 0;
    uint32_t own = 0;  // key of this thread's largest
    Ranked best;
    const bool same = x.mask == nullptr && !changed;
    if (row_.logprobs >= 0 || same) best = B::largest(raw, &own);
    if (row_.logprobs >= 0) write_logprobs(raw, best, own);
    if (changed) x = change(x, scratch_row);
    if (!same) best = B::largest(x, &own);

    if ((row_.flags & kSampleMirostat) != 0 && B::thread() == 0) a_.out.surprise[index_] = 0;
    int32_t token = best.id();
    if (!finite(best)) {
      token = lowest_allowed();
    } else if ((row_.flags & kSampleGreedy) == 0) {
      if constexpr (kShaped)
        token = draw_shaped(x, best, own);
      else
        token = draw(x, value_of(best.key()), own);
    }
    if (B::thread() != 0) return;
    a_.out.token[index_] = token;
    if (a_.out.last_token != nullptr) a_.out.last_token[row_.slot] = token;
    if (row_.logprobs >= 0) a_.out.logprob[index_] = logprob(raw.at(token));
  }

 private:
  static __device__ bool finite(Ranked r) { return r.key() >= key_of(-kLargest); }
  static __device__ Cut all_finite() { return {key_of(-kLargest), ~0u}; }

  // The first k of what `cut` keeps; *listed: the list then holds these and perhaps more, or -1.
  __device__ Cut first_of(const Logits& row, int32_t k, Cut cut, uint32_t own, int32_t* listed) {
    // The k-th of the threads' largest bounds the k-th of all from below.
    if (k < kThreads) {
      s_.key[B::thread()] = own;
      s_.id[B::thread()] = B::thread();
      sync_threads();
      const Cut bound = B::template select<false>(row, kThreads, {}, {cut.key, ~0u}, k);
      if (bound.key > cut.key) cut = {bound.key, ~0u};
    }
    *listed = B::collect(row, cut);
    return B::template select<false>(row, *listed, {}, cut, k);
  }

  // Log of the sum of the raw logits' weights, and the row's most likely tokens.
  __device__ void write_logprobs(const Logits& raw, Ranked best, uint32_t own) {
    const bool some = finite(best);
    const Weights weights{some ? value_of(best.key()) : 0.0f, 1.0f, unit_of(a_.vocab)};
    const uint64_t sum = some ? B::weigh(raw, -1, weights, all_finite()) : 0;
    if (B::thread() == 0) {
      const double weight = static_cast<double>(sum) / static_cast<double>(weights.unit);
      s_.max = weights.max;
      s_.log_sum = some ? log(weight) : 0.0;
    }
    sync_threads();
    if (row_.logprobs > 0) write_top(raw, own);
  }

  __device__ float logprob(float x) const {
    return x > kNone ? static_cast<float>(static_cast<double>(x) - s_.max - s_.log_sum) : kNone;
  }

  __device__ void write_top(const Logits& raw, uint32_t own) {
    const int32_t k = row_.logprobs;
    int32_t listed;
    const Cut cut = first_of(raw, k, all_finite(), own, &listed);
    // The first in no order, then each finds its rank. Where the list holds all, they go to another array.
    uint32_t* const keys = s_.low;
    uint32_t* const ids = s_.high;
    if (B::thread() == 0) s_.count = 0;
    sync_threads();
    B::for_each_candidate(raw, listed, [&](uint32_t key, int32_t id) {
      if (!cut.keeps(key, id)) return;
      const uint32_t at = atomic_add(&s_.count, 1u);
      keys[at] = key;
      ids[at] = static_cast<uint32_t>(id);
    });
    sync_threads();
    const auto n = static_cast<int32_t>(s_.count);
    const int64_t out = index_ * a_.out.top_stride;
    for (int32_t i = B::thread(); i < k; i += kThreads) {
      int32_t rank = i;
      if (i < n) {
        rank = 0;
        for (int32_t j = 0; j < n; ++j)
          rank += keys[j] > keys[i] || (keys[j] == keys[i] && ids[j] < ids[i]) ? 1 : 0;
      }
      a_.out.top_token[out + rank] = i < n ? static_cast<int32_t>(ids[i]) : -1;
      a_.out.top_logprob[out + rank] = i < n ? logprob(value_of(keys[i])) : kNone;
    }
    sync_threads();
  }

  __device__ bool in_vocab(int32_t token) const { return token >= 0 && token < a_.vocab; }

  // The row as the mask, banned tokens, bias and penalties leave it, in scratch.
  __device__ Logits change(const Logits& from, int32_t scratch_row) {
    const int64_t offset = static_cast<int64_t>(scratch_row) * ((a_.vocab + 3) / 4 * 4);
    float* const x = a_.scratch + offset;
    for (int32_t i = B::thread(); i < a_.vocab; i += kThreads) x[i] = from.at(i);
    sync_threads();
    const int32_t* banned = a_.lists + row_.banned.begin;
    for (int32_t i = B::thread(); i < row_.banned.count; i += kThreads)
      if (in_vocab(banned[i])) x[banned[i]] = kNone;
    sync_threads();
    const int32_t* bias = a_.lists + row_.bias.begin;
    for (int32_t i = B::thread(); i < row_.bias.count; i += kThreads) {
      const int32_t token = bias[2 * i];
      if (!in_vocab(token) || (i > 0 && bias[2 * i - 2] == token)) continue;
      for (int32_t j = i; j < row_.bias.count && bias[2 * j] == token; ++j)
        x[token] += bit_cast<float>(bias[2 * j + 1]);
    }
    sync_threads();
    if ((row_.flags & kSamplePenalties) != 0) apply_penalties(x, a_.counts + offset);
    if ((row_.flags & kSampleExtra) != 0) {
      const ListSpan late = shape().late;
      const int32_t* list = a_.lists + late.begin;
      for (int32_t i = B::thread(); i < late.count; i += kThreads)
        if (in_vocab(list[2 * i])) x[list[2 * i]] += bit_cast<float>(list[2 * i + 1]);
      sync_threads();
    }
    return {.x = x, .vocab = a_.vocab};
  }

  // use(position, token) of prompt and output.
  template <class Use>
  __device__ void for_each_token(Use use) const {
    if (a_.batch.history == nullptr) {
      const int32_t* tokens = a_.lists + row_.tokens.begin;
      for (int32_t p = B::thread(); p < row_.tokens.count; p += kThreads) use(p, tokens[p]);
      return;
    }
    const int32_t input = a_.batch.logit_token[index_];
    const int32_t* blocks = a_.batch.row_blocks + a_.batch.history_group * a_.batch.group_stride +
                            static_cast<int64_t>(a_.batch.token_row[input]) * a_.batch.max_blocks;
    const int32_t length = a_.batch.position[input] + 1, in_block = (1 << a_.block_shift) - 1;
    for (int32_t p = B::thread(); p < length; p += kThreads) {
      const int64_t block = blocks[p >> a_.block_shift];
      if (block >= 0) use(p, a_.batch.history[(block << a_.block_shift) + (p & in_block)]);
    }
  }

  __device__ void apply_penalties(float* x, uint32_t* counts) {
    for_each_token([&](int32_t position, int32_t token) {
      if (!in_vocab(token)) return;
      if (position < row_.prompt_len)
        atomic_or(&counts[token], kInPrompt);
      else
        atomic_add(&counts[token], 1u);
    });
    sync_threads();
    // Whoever takes the count of a token changes its logit, which leaves the counts zero.
    for_each_token([&](int32_t, int32_t token) {
      if (!in_vocab(token)) return;
      const uint32_t seen = atomic_exch(&counts[token], 0u);
      if (seen != 0) x[token] = penalized(x[token], seen);
    });
    sync_threads();
  }

  __device__ float penalized(float x, uint32_t seen) const {
    // Rounded after each operation, as on the CPU: no fused multiply and add.
    x = x > 0 ? x / row_.repetition : multiply(x, row_.repetition);
    const uint32_t in_output = seen & ~kInPrompt;
    if (in_output != 0) x -= multiply(row_.frequency, static_cast<float>(in_output)) + row_.presence;
    return x;
  }

  // For a row without a finite logit: the lowest token that mask and banned tokens allow, else 0.
  __device__ int32_t lowest_allowed() {
    const uint32_t* mask =
        row_.mask < 0 ? nullptr : a_.masks + static_cast<int64_t>(row_.mask) * ((a_.vocab + 31) / 32);
    const int32_t* banned = a_.lists + row_.banned.begin;
    uint64_t found = 0;
    for (int32_t i = B::thread(); i < a_.vocab && found == 0; i += kThreads) {
      bool allowed = mask == nullptr || (mask[i / 32] >> (i % 32) & 1) != 0;
      for (int32_t j = 0; j < row_.banned.count && allowed; ++j) allowed = banned[j] != i;
      if (allowed) found = Ranked::of(1, i).bits;
    }
    found = B::max(found);
    return found == 0 ? 0 : Ranked{found}.id();
  }

  __device__ int32_t draw(const Logits& x, float max, uint32_t own) {
    const Weights weights{max, row_.scale, unit_of(a_.vocab)};
    Cut cut = all_finite();
    if (row_.min_p > 0) {
      const auto floor = static_cast<float>(static_cast<double>(max) + row_.floor);
      cut.key = maximum(cut.key, key_of(clean(minimum(floor, max))));
    }
    int32_t listed = -1;
    if (row_.top_k > 0) cut = first_of(x, row_.top_k, cut, own, &listed);
    if (row_.top_p < 1) cut = nucleus(x, weights, cut, &listed);
    return invert(x, weights, cut, listed);
  }

  __device__ Cut nucleus(const Logits& x, const Weights& weights, Cut cut, int32_t* listed) {
    const uint64_t sum = B::weigh(x, *listed, weights, cut);
    if (*listed < 0) {
      // Tokens that weigh less than this make together less than the 1 - top_p that is cut off.
      const float each = (1 - row_.top_p) * static_cast<float>(sum) / static_cast<float>(a_.vocab);
      const float margin = 0.01f + 1e-6f * fabsf(weights.max * weights.scale);
      const float floor = weights.max + (logf(each / weights.unit) - margin) / weights.scale;
      const uint32_t key = each > 0 ? key_of(clean(floor)) : 0;
      if (key > cut.key) cut = {key, ~0u};
      *listed = B::collect(x, cut);
    }
    const double target = static_cast<double>(row_.top_p) * static_cast<double>(sum);
    const auto need = static_cast<uint64_t>(ceil(target));
    return B::template select<true>(x, *listed, weights, cut, maximum(need, uint64_t{1}));
  }

  __device__ Noise noise() const {
    const int64_t position =
        a_.batch.position == nullptr ? row_.position : a_.batch.position[a_.batch.logit_token[index_]] + 1;
    return noise_of(row_.seed, position);
  }

  __device__ const DeviceShape& shape() const {
    return *reinterpret_cast<const DeviceShape*>(a_.lists + row_.bias.begin - kShapeWords);
  }

  // As cpu::choose_shaped(). x is in scratch: what is cut off becomes -inf there, unless `cut` can say it.
  __device__ int32_t draw_shaped(const Logits& x, Ranked best, uint32_t own) {
    const DeviceShape& shape = this->shape();
    float* const values = a_.scratch + (x.x - a_.scratch);
    Weights weights{value_of(best.key()), row_.scale, unit_of(a_.vocab)};
    Cut cut = all_finite();
    int32_t listed = -1;
    if (shape.mirostat != 0) {
      cut = raised(cut, weights.max - kNoWeight * shape.temperature, weights.max);
      if (shape.mirostat == 2) {
        cut = S::cut_surprise(x, weights, cut, best, shape);
      } else {
        const Cut top = first_of(x, minimum(kSlopeTokens, a_.vocab), cut, own, &listed);
        cut = first_of(x, S::zipf_tokens(x, listed, weights, top, shape.mu), cut, own, &listed);
      }
      const int32_t token = invert(x, weights, cut, listed);
      const uint64_t sum = B::weigh(x, listed, weights, cut);
      const auto odds = static_cast<double>(sum) / static_cast<double>(weights.of(x.at(token)));
      if (B::thread() == 0) a_.out.surprise[index_] = log2f(static_cast<float>(odds));
      return token;
    }
    double min_p_floor = row_.floor;
    if (shape.top_n_sigma > 0) cut = S::cut_sigma(x, weights.max, cut, shape.top_n_sigma);
    if (shape.dynatemp_range > 0 && a_.vocab > 1) {
      const double temperature = S::dynamic_temperature(x, weights, cut, shape);
      if (temperature < 1e-5) return best.id();
      weights.scale = static_cast<float>(1 / temperature);
      min_p_floor *= temperature / shape.temperature;
    }
    if (row_.min_p > 0) cut = raised(cut, weights.max + min_p_floor, weights.max);
    if (row_.top_k > 0) cut = first_of(x, row_.top_k, cut, own, &listed);
    if (shape.typical_p < 1) {
      S::cut_typical(x, values, listed, weights, cut, shape.typical_p);
      cut = all_finite();
      listed = B::collect(x, cut);
    }
    if (row_.top_p < 1) cut = nucleus(x, weights, cut, &listed);
    if (static_cast<double>(noise().coin >> 11) * 0x1p-53 < shape.xtc_probability) {
      S::cut_xtc(x, values, listed, weights, cut, shape.xtc_threshold);
      if (listed >= 0) listed = B::collect(x, cut);
    }
    return invert(x, weights, cut, listed);
  }

  // The token at which the weights of what `cut` keeps, summed by id, exceed the noise's part of their sum.
  __device__ int32_t invert(const Logits& x, const Weights& weights, Cut cut, int32_t listed) {
    const uint64_t all = B::weigh(x, listed, weights, cut);
    uint64_t left = multiply_high(noise().draw, all);
    if (listed >= 0)
      return static_cast<int32_t>(B::template last_id<true>(x, listed, weights, cut, left + 1));
    int warp = 0;
    while (warp < B::kWarps - 1 && left >= s_.part[warp]) left -= s_.part[warp++];
    sync_threads();

    const auto weight = [&](int32_t id, float v) { return cut.keeps(key_of(v), id) ? weights.of(v) : 0; };
    const int32_t size = B::segment(a_.vocab), end = minimum(a_.vocab, (warp + 1) * size);
    for (int32_t first = warp * size; first < end; first += 4 * kThreads) {
      const int32_t i = first + 4 * B::thread();
      float v[4];
      x.load4(i, end, v);
      uint64_t sum = 0, of_all;
      for (int j = 0; j < 4; ++j)
        if (i + j < end) sum += weight(i + j, v[j]);
      uint64_t before = B::exclusive_scan(sum, &of_all);
      if (left >= of_all) {
        left -= of_all;
        continue;
      }
      if (before <= left && left < before + sum) {
        int j = 0;
        for (before += weight(i, v[0]); before <= left; before += weight(i + j, v[j])) ++j;
        s_.token = i + j;
      }
      break;
    }
    sync_threads();
    return s_.token;
  }

  const Args& a_;
  Shared& s_;
  const DeviceSampleRow& row_;
  const int64_t index_;
};

// Block b < rows: row b of the logits, unless it is changed. The others: changed rows of these logits, in
// turn. kShaped: all blocks are such others, for the rows that the other kernel leaves out.
template <int kThreads, bool kShaped>
__global__ void __launch_bounds__(kThreads, 1) sample_rows(const __grid_constant__ Args args) {
  grid_dependency_wait();
  grid_launch_dependents();
  const auto block = static_cast<int32_t>(blockIdx.x);
  const int32_t plain = kShaped ? 0 : args.rows;
  const bool changed = block >= plain;
  const int32_t mine = changed ? block - plain : 0;
  const int32_t count = changed ? args.changed[0] : 1;
  for (int32_t i = mine; i < count; i += args.scratch_rows) {
    const int32_t index = changed ? args.changed[1 + i] : args.first_row + block;
    if (index < args.first_row || index >= args.first_row + args.rows) continue;
    const DeviceSampleRow& row = args.row[index];
    const bool shaped = (row.flags & kSampleShaped) != 0;
    if ((row.flags & kSamplePadding) != 0) {
      if (!kShaped && threadIdx.x == 0 && args.out.last_token != nullptr) args.out.last_token[row.slot] = 0;
    } else if (shaped == kShaped && changed == ((row.flags & kSampleChanged) != 0)) {
      RowSampler<kThreads, kShaped>(args, index).run(mine);
    }
    sync_threads();
  }
}

}  // namespace sampling

namespace {

constexpr int kSampleThreads =
#ifdef DEEPINFER_EMULATION
    128;  // a thread is a fiber there
#else
    1024;
#endif

int32_t log2_of(int32_t block_size) {
  int32_t shift = 0;
  while (1 << shift < block_size) ++shift;
  DI_CHECK(1 << shift == block_size, "sample: KV blocks of {} tokens, expected a power of two", block_size);
  return shift;
}

template <int kThreads>
void launch_rows(Gpu& gpu, const sampling::Args& args, bool shaped) {
  LaunchConfig config{.grid = dim3(static_cast<unsigned>(args.rows + args.scratch_rows)),
                      .block = dim3(kThreads),
                      .stream = stream_of(gpu),
                      .pdl = gpu.pdl};
  launch(config, sampling::sample_rows<kThreads, false>, args);
  if (!shaped) return;
  config.grid = dim3(static_cast<unsigned>(args.scratch_rows));
  launch(config, sampling::sample_rows<kThreads, true>, args);
}

// Frees what a launch used after the stream is done with it, exceptions included.
struct Synchronized {
  Gpu& gpu;
  ~Synchronized() {
    try {
      gpu.synchronize();
    } catch (...) {  // the error comes again with the next call
    }
  }
};

}  // namespace

void sample_device_with(int threads, Gpu& gpu, const SampleCall& call) {
  const Tensor& logits = call.logits;
  const DeviceSampleBlock& block = call.block;
  DI_CHECK(logits.dtype == DType::kF32 && logits.rank == 2, "sample.logits: got {}", logits.describe());
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  DI_CHECK(vocab >= 1 && vocab <= kMaxSampleVocab, "sample: a vocabulary of {}, expected 1 to {}", vocab,
           kMaxSampleVocab);
  DI_CHECK(block.first_row + rows <= block.layout.max_rows, "sample: rows {} to {}, the block has {}",
           block.first_row, block.first_row + rows, block.layout.max_rows);
  if (rows == 0) return;
  sampling::Args args{
      .logits = logits.as<float>(),
      .stride = logits.stride[0],
      .vocab = static_cast<int32_t>(vocab),
      .first_row = block.first_row,
      .rows = static_cast<int32_t>(rows),
      .scratch_rows = std::min(scratch_rows(block.layout.max_rows, vocab), static_cast<int32_t>(rows)),
      .changed = reinterpret_cast<const int32_t*>(block.data),
      .row = reinterpret_cast<const DeviceSampleRow*>(block.data + rows_offset(block.layout)),
      .lists = reinterpret_cast<const int32_t*>(block.data + lists_offset(block.layout)),
      .masks = block.masks,
      .batch = call.batch,
      .out = call.out,
      .scratch = reinterpret_cast<float*>(call.scratch)};
  if (args.batch.history != nullptr) args.block_shift = log2_of(call.block_size);
  const int64_t padded = (vocab + 3) / 4 * 4;
  args.counts =
      reinterpret_cast<uint32_t*>(args.scratch + padded * scratch_rows(block.layout.max_rows, vocab));
#ifdef DEEPINFER_EMULATION
  if (threads == 1024) return launch_rows<1024>(gpu, args, block.shaped);
#endif
  DI_CHECK(threads == kSampleThreads, "sample: {} threads a block", threads);
  launch_rows<kSampleThreads>(gpu, args, block.shaped);
}

void sample_device(Gpu& gpu, const Tensor& logits, const DeviceSampleBlock& block, const DeviceBatch& batch,
                   int32_t block_size, const SampleOutputs& out, std::byte* scratch) {
  sample_device_with(kSampleThreads, gpu, {logits, block, batch, block_size, out, scratch});
}

namespace {

Buffer take(Result<Buffer> result) {
  if (!result) throw CudaOutOfMemory(result.error().message);
  return std::move(result).value();
}

void check_outputs(const SampleParams& p) {
  for (size_t i = 0; i < p.rows.size(); ++i) {
    const SampleRow& row = p.rows[i];
    const int32_t k = row.logprobs;
    DI_CHECK(k < 0 || (p.logprob && p.logprob.elems() > static_cast<int64_t>(i)),
             "sample.logprob: got {}, row {} wants one", p.logprob.describe(), i);
    DI_CHECK(k <= 0 || (p.top_token && p.top_logprob && p.top_token.size(-1) >= k &&
                        p.top_logprob.size(-1) >= k && p.top_token.stride[0] == p.top_logprob.stride[0]),
             "sample.top_token: got {}, row {} wants {}", p.top_token.describe(), i, k);
    DI_CHECK(row.mirostat == 0 || (p.surprise && p.surprise.elems() > static_cast<int64_t>(i)),
             "sample.surprise: got {}, row {} wants one", p.surprise.describe(), i);
    if (p.slots == nullptr) continue;
    const int64_t slots = p.slots->last_token.elems();
    DI_CHECK(row.slot >= 0 && row.slot < slots, "sample: slot {} of {}", row.slot, slots);
  }
}

}  // namespace

// For tests and tools: packs, copies and waits in each call. A runner keeps its own memory.
void sample(Context& context, const SampleParams& p) {
  if (p.rows.empty()) return;
  Gpu& gpu = *context.gpu;
  check_outputs(p);
  const int64_t vocab = p.logits.size(1);
  const auto rows = static_cast<int32_t>(p.rows.size());
  SamplePacking packing{.layout = {.max_rows = rows}, .rows = rows, .vocab = vocab, .history = false};
  packing.layout.list_words = list_words(p.rows, packing.history);
  const size_t block_bytes = sample_block_bytes(packing.layout);
  const size_t mask_bytes = static_cast<size_t>(rows * mask_words(vocab)) * sizeof(uint32_t);
  const size_t scratch_bytes = sample_scratch_bytes(rows, vocab);
  Buffer pinned = take(gpu.allocate_pinned(block_bytes + mask_bytes));
  Buffer device = take(gpu.allocate(block_bytes + mask_bytes));
  Buffer scratch = take(gpu.allocate(scratch_bytes));
  const Synchronized synchronized{gpu};
  const Packed packed = pack_sample_block(p.rows, packing, pinned.data());
  DI_CHECK(packed.fits, "sample: {} words of lists", packed.list_words);
  gpu.copy_in(device.data(), pinned.data(), packed.bytes);
  auto* masks = reinterpret_cast<uint32_t*>(pinned.data() + block_bytes);
  if (const size_t bytes = pack_masks(p.rows, vocab, masks); bytes > 0)
    gpu.copy_in(device.data() + block_bytes, masks, bytes);
  gpu.fill(scratch.data(), 0, scratch_bytes);

  SampleOutputs out{.token = p.token.as<int32_t>(),
                    .logprob = p.logprob.as<float>(),
                    .top_token = p.top_token.as<int32_t>(),
                    .top_logprob = p.top_logprob.as<float>(),
                    .last_token = p.slots == nullptr ? nullptr : p.slots->last_token.as<int32_t>(),
                    .surprise = p.surprise.as<float>()};
  if (p.top_token) out.top_stride = p.top_token.stride[0];
  const DeviceSampleBlock block{device.data(), packing.layout,
                                reinterpret_cast<const uint32_t*>(device.data() + block_bytes), 0,
                                packed.shaped};
  sample_device(gpu, p.logits, block, {}, 1, out, scratch.data());
  gpu.synchronize();
}

}  // namespace deepinfer::cuda
