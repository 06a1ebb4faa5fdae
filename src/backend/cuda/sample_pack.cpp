#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "backend/cuda/sample_layout.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

constexpr size_t kScratchBytes = size_t{64} << 20;

bool has_penalties(const SampleRow& row) {
  return row.repetition_penalty != 1.0f || row.frequency_penalty != 0 || row.presence_penalty != 0;
}

bool has_extra(const SampleRow& row) {
  return row.shaped() || row.mirostat != 0 || !row.late_bias.empty();
}

size_t words_of(const SampleRow& row, bool history) {
  const size_t tokens = history || !has_penalties(row) ? 0 : row.prompt.size() + row.output.size();
  const size_t extra = has_extra(row) ? kShapeWords + 2 * row.late_bias.size() : 0;
  return extra + 2 * row.bias.size() + row.banned.size() + tokens;
}

class Packer {
 public:
  Packer(const SamplePacking& packing, std::byte* host)
      : packing_(packing),
        changed_(reinterpret_cast<int32_t*>(host)),
        rows_(reinterpret_cast<DeviceSampleRow*>(host + rows_offset(packing.layout))),
        lists_(reinterpret_cast<int32_t*>(host + lists_offset(packing.layout))) {
    changed_[0] = 0;
  }

  void row(const SampleRow& row) {
    DI_CHECK(row.logprobs <= kMaxTopLogprobs, "sample: {} logprobs, at most {}", row.logprobs,
             kMaxTopLogprobs);
    DeviceSampleRow r{.seed = row.seed,
                      .position = row.position,
                      .top_p = row.top_p,
                      .min_p = row.min_p,
                      .presence = row.presence_penalty,
                      .frequency = row.frequency_penalty,
                      .repetition = row.repetition_penalty,
                      .top_k = row.top_k < packing_.vocab ? row.top_k : 0,
                      .slot = row.slot,
                      .logprobs = row.logprobs,
                      .prompt_len = static_cast<int32_t>(row.prompt.size())};
    if (row.mask != nullptr) r.mask = masks_++;
    if (row.greedy()) {
      r.flags |= kSampleGreedy;
    } else {
      const double temperature = row.temperature;
      r.scale = static_cast<float>(1 / temperature);
      if (row.min_p > 0) r.floor = std::log(static_cast<double>(row.min_p)) * temperature;
    }
    if (has_penalties(row)) r.flags |= kSamplePenalties;
    pack_lists(row, r);
    if ((r.flags & (kSamplePenalties | kSampleExtra)) != 0 || r.bias.count > 0 || r.banned.count > 0) {
      r.flags |= kSampleChanged;
      changed_[++changed_[0]] = count_;
    }
    rows_[count_++] = r;
  }

  size_t finish() {
    for (; count_ < packing_.rows; ++count_)
      rows_[count_] = {.slot = packing_.dummy_slot, .flags = kSamplePadding};
    return lists_offset(packing_.layout) + static_cast<size_t>(words_) * sizeof(int32_t);
  }

 private:
  void pack_lists(const SampleRow& row, DeviceSampleRow& r) {
    if (has_extra(row)) put_shape(row, r);
    r.bias = {words_, static_cast<int32_t>(row.bias.size())};
    put_bias(row.bias);
    r.banned = copy(row.banned);
    if (packing_.history || !has_penalties(row)) return;
    r.tokens = copy(row.prompt);
    r.tokens.count += copy(row.output).count;
  }

  void put_shape(const SampleRow& row, DeviceSampleRow& r) {
    r.flags |= kSampleExtra | (row.shaped() ? kSampleShaped : 0) | (row.mirostat != 0 ? kSampleMirostat : 0);
    const DeviceShape shape{.temperature = row.temperature,
                            .typical_p = row.typical_p,
                            .top_n_sigma = row.top_n_sigma,
                            .xtc_probability = row.has_xtc() ? row.xtc_probability : 0,
                            .xtc_threshold = row.xtc_threshold,
                            .dynatemp_range = row.dynatemp_range,
                            .dynatemp_exponent = row.dynatemp_exponent,
                            .mirostat = row.mirostat,
                            .mu = row.mirostat_mu,
                            .late = {words_, static_cast<int32_t>(row.late_bias.size())}};
    std::ranges::copy(row.late_bias, reinterpret_cast<LogitBias*>(lists_ + words_));
    words_ += 2 * shape.late.count;
    std::memcpy(lists_ + words_, &shape, sizeof shape);
    words_ += kShapeWords;
  }

  // By token; several biases of one token in their order, which the kernel adds one by one.
  void put_bias(std::span<const LogitBias> bias) {
    static_assert(sizeof(LogitBias) == 2 * sizeof(int32_t));
    if (bias.empty()) return;
    auto* to = reinterpret_cast<LogitBias*>(lists_ + words_);
    words_ += 2 * static_cast<int32_t>(bias.size());
    if (std::ranges::is_sorted(bias, {}, &LogitBias::token)) {
      std::ranges::copy(bias, to);
      return;
    }
    std::vector<int32_t> order(bias.size());  // a request's list is sorted: not in the step loop
    std::iota(order.begin(), order.end(), 0);
    std::ranges::sort(order, {}, [&](int32_t i) { return std::pair(bias[i].token, i); });
    for (const int32_t i : order) *to++ = bias[i];
  }

  ListSpan copy(std::span<const int32_t> tokens) {
    const ListSpan span{words_, static_cast<int32_t>(tokens.size())};
    std::copy(tokens.begin(), tokens.end(), lists_ + words_);
    words_ += span.count;
    return span;
  }

  const SamplePacking& packing_;
  int32_t* changed_;
  DeviceSampleRow* rows_;
  int32_t* lists_;
  int32_t count_ = 0, words_ = 0, masks_ = 0;
};

}  // namespace

size_t sample_block_bytes(const SampleBlockLayout& layout) {
  return lists_offset(layout) + align16(static_cast<size_t>(layout.list_words) * sizeof(int32_t));
}

int32_t list_words(std::span<const SampleRow> rows, bool history) {
  size_t words = 0;
  for (const SampleRow& row : rows) words += words_of(row, history);
  DI_CHECK(words <= INT32_MAX / sizeof(int32_t), "sample: lists of {} words in one step", words);
  return static_cast<int32_t>(words);
}

Packed pack_sample_block(std::span<const SampleRow> rows, const SamplePacking& packing, std::byte* host) {
  const SampleBlockLayout& layout = packing.layout;
  Packed packed{.list_words = list_words(rows, packing.history)};
  const size_t count = std::max(rows.size(), static_cast<size_t>(std::max(packing.rows, 0)));
  packed.fits = packed.list_words <= layout.list_words && count <= static_cast<size_t>(layout.max_rows);
  if (!packed.fits) return packed;
  Packer packer(packing, host);
  for (const SampleRow& row : rows) {
    packer.row(row);
    packed.shaped = packed.shaped || row.shaped();
  }
  packed.bytes = packer.finish();
  return packed;
}

size_t pack_masks(std::span<const SampleRow> rows, int64_t vocab, uint32_t* host) {
  size_t words = 0;
  for (const SampleRow& row : rows) {
    if (row.mask == nullptr) continue;
    std::copy_n(row.mask, mask_words(vocab), host + words);
    words += static_cast<size_t>(mask_words(vocab));
  }
  return words * sizeof(uint32_t);
}

int32_t scratch_rows(int32_t max_rows, int64_t vocab) {
  const size_t row = static_cast<size_t>(vocab) * (sizeof(float) + sizeof(uint32_t));
  const auto fits =
      static_cast<int32_t>(std::min<size_t>(std::max<size_t>(kScratchBytes / row, 1), INT32_MAX));
  return std::clamp(max_rows, 1, fits);
}

size_t sample_scratch_bytes(int32_t max_rows, int64_t vocab) {
  // A row's values stand at multiples of 16 bytes, for loads of that size.
  const auto row = static_cast<size_t>((vocab + 3) / 4 * 4) * (sizeof(float) + sizeof(uint32_t));
  return static_cast<size_t>(scratch_rows(max_rows, vocab)) * row;
}

}  // namespace deepinfer::cuda
