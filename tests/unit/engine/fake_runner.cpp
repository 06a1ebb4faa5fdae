#include "fake_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "engine/sampling_params.h"
#include "oracle_lists.h"
#include "tensor/step_batch.h"

namespace deepinfer::test {
namespace {

uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t z = (a ^ (b + 0x9e3779b97f4a7c15u + (a << 6) + (a >> 2))) * 0xbf58476d1ce4e5b9u;
  return z ^ (z >> 29);
}

int64_t first_visible(const KvGroupSpec& group, int64_t position) {
  return group.kind == KvGroupSpec::Kind::kFull ? 0 : std::max<int64_t>(0, position - group.window);
}

uint64_t cell_value(uint64_t value, size_t group) {
  return mix(value, group + 17);
}

uint64_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// What a draw depends on, beside the model.
struct Shape {
  uint64_t seed = 0, history = 0;
  std::span<const int32_t> banned;
  std::span<const LogitBias> late_bias;
  const uint32_t* mask = nullptr;
  bool mirostat = false;
  float mu = 0;
};

struct Drawn {
  int32_t token = 0;
  float surprise = 0;
};

Drawn draw(int vocab, uint64_t value, int64_t position, const Shape& shape) {
  uint64_t x = mix(mix(mix(value, shape.seed), static_cast<uint64_t>(position)), shape.history);
  for (const LogitBias& b : shape.late_bias) x = mix(mix(x, static_cast<uint64_t>(b.token)), bits_of(b.bias));
  if (shape.mirostat) x = mix(x, bits_of(shape.mu));
  while (true) {
    auto token = static_cast<int32_t>((x >> 17) % static_cast<uint64_t>(vocab));
    const bool allowed = shape.mask == nullptr || (shape.mask[token / 32] >> (token % 32) & 1) != 0;
    if (allowed && std::find(shape.banned.begin(), shape.banned.end(), token) == shape.banned.end())
      return {token, static_cast<float>(x % 4000) / 400};
    x = mix(x, 1);
  }
}

// Stands for how likely `token` is after a position of this value.
OutputToken score(int vocab, uint64_t value, int32_t token) {
  const uint64_t h = mix(value, static_cast<uint64_t>(token) + 99);
  return {.id = token,
          .rank = 1 + static_cast<int32_t>((h >> 9) % static_cast<uint64_t>(vocab)),
          .logprob = -static_cast<float>((h >> 20) % 1000) / 100};
}

// Stands for the penalties: it depends on every token of prompt and output.
uint64_t history_hash(uint64_t h, std::span<const int32_t> tokens) {
  for (int32_t t : tokens) h = mix(h, static_cast<uint64_t>(t));
  return h;
}

}  // namespace

OracleOutput oracle(const ModelRunner::Info& info, const OracleRequest& request) {
  const SamplingParams& params = request.sampling;
  ResolvedSampling sampling = resolve(params, request.end_ids, info.vocab_size);
  std::vector<int32_t> tokens = request.prompt;
  std::vector<uint64_t> values;
  OracleOutput out;
  float mu = 2 * params.mirostat_tau;
  auto limit = std::min<int64_t>(request.max_len,
                                 static_cast<int64_t>(request.prompt.size()) + request.sampling.max_tokens);
  while (out.finish == FinishReason::kNone) {
    for (size_t p = values.size(); p < tokens.size(); ++p) {
      uint64_t h = mix(static_cast<uint64_t>(tokens[p]), p);
      for (size_t g = 0; g < info.groups.size(); ++g) {
        for (auto q = static_cast<size_t>(first_visible(info.groups[g], static_cast<int64_t>(p))); q < p;
             ++q) {
          h = mix(h, cell_value(values[q], g));
        }
      }
      values.push_back(h);
      if (request.sampling.prompt_logprobs >= 0 && p + 1 < request.prompt.size())
        out.scores.push_back(score(info.vocab_size, h, request.prompt[p + 1]));
    }
    if (request.sampling.max_tokens == 0) {
      out.finish = FinishReason::kLength;
      break;
    }
    auto count = static_cast<int64_t>(out.tokens.size());
    const std::vector<int32_t> banned = plain_banned(params, sampling.stop_ids, info.vocab_size, out.tokens);
    const std::vector<LogitBias> dry = plain_dry(params, tokens);
    const Shape shape{.seed = request.seed,
                      .history = sampling.penalties ? history_hash(5, tokens) : 0,
                      .banned = banned,
                      .late_bias = dry,
                      .mask = sampling.mask.empty() ? nullptr : sampling.mask.data(),
                      .mirostat = params.mirostat != 0,
                      .mu = mu};
    const auto [token, surprise] =
        draw(info.vocab_size, values.back(), static_cast<int64_t>(tokens.size()), shape);
    mu -= params.mirostat_eta * (surprise - params.mirostat_tau);
    tokens.push_back(token);
    out.tokens.push_back(token);
    if (sampling.stops(token) && count >= request.sampling.min_tokens) {
      out.finish = FinishReason::kStop;
    } else if (static_cast<int64_t>(tokens.size()) >= limit) {
      out.finish = FinishReason::kLength;
    }
  }
  return out;
}

KvGroupSpec full_group() {
  return {};
}

KvGroupSpec window_group(int window) {
  KvGroupSpec group;
  group.kind = KvGroupSpec::Kind::kWindow;
  group.window = window;
  return group;
}

ModelRunner::Info small_info() {
  ModelRunner::Info info;
  info.groups = {full_group()};
  info.block_size = 4;
  info.num_blocks = 64;
  info.num_slots = 8;
  info.vocab_size = 50;
  info.max_model_len = 200;
  return info;
}

FakeRunner::FakeRunner(FakeOptions options) : options_(std::move(options)) {
  store_.resize(static_cast<size_t>(options_.info.num_blocks * options_.info.block_size));
  slots_.resize(static_cast<size_t>(options_.info.num_slots));
}

void FakeRunner::fault(std::string what) {
  if (faults_.size() < 20) faults_.push_back(std::move(what));
}

void FakeRunner::launch_forward(const Step& step) {
  if (on_launch) on_launch(step);
  if (static_cast<int>(in_flight_.size()) >= options_.info.max_in_flight) fault("too many steps in flight");
  bool prefill = false;
  int wanted = 0;
  for (const StepRow& row : step.rows) wanted += row.samples ? 1 + row.drafts : 0;
  if (wanted > std::max(options_.info.logit_rows, options_.info.num_slots)) fault("too many logits");
  for (const StepRow& row : step.rows) {
    check_row(row);
    if (row.tokens.size() > 1) prefill = true;
    if (prefill && row.tokens.size() == 1) fault("a decode row after a prefill chunk");
  }
  check_conflicts(step);
  InFlight flight{.step = &step, .id = step.id};
  for (const StepRow& row : step.rows) {
    flight.rows.push_back(footprint(row));
  }
  in_flight_.push_back(std::move(flight));
  max_in_flight_seen_ = std::max(max_in_flight_seen_, static_cast<int>(in_flight_.size()));
}

void FakeRunner::launch_sample(const Step& step) {
  if (in_flight_.empty() || in_flight_.back().id != step.id) throw std::logic_error("sample without forward");
  in_flight_.back().sampled = true;
  if (!options_.late) execute(step, in_flight_.back().output);
}

int64_t FakeRunner::release_unused() {
  if (!in_flight_.empty()) fault("memory is given back under a step in flight");
  return 4096;
}

StepOutput FakeRunner::wait(uint64_t step_id) {
  if (in_flight_.empty() || in_flight_.front().id != step_id || !in_flight_.front().sampled) {
    throw std::logic_error("wait for a step that is not the oldest");
  }
  InFlight flight = std::move(in_flight_.front());
  in_flight_.pop_front();
  if (on_wait) on_wait(step_id);
  if (options_.late) execute(*flight.step, flight.output);
  return std::move(flight.output);
}

void FakeRunner::check_row(const StepRow& row) {
  const Info& info = options_.info;
  if (row.slot < 0 || row.slot >= info.num_slots) return fault("slot out of range");
  int64_t end = row.context_len + static_cast<int64_t>(row.tokens.size()) + row.room - 1;
  if (end >= info.max_model_len) fault(fmt::format("row to position {} of {}", end, info.max_model_len));
  if (row.block_table.size() != info.groups.size()) return fault("wrong number of block tables");
  for (const auto& table : row.block_table) {
    if (static_cast<int64_t>(table.size()) * info.block_size < end) fault("block table too short");
  }
  if (info.stages > 1 && row.tokens[0] == kTokenFromSlot) fault("a stage is told of a token that none knows");
  if (row.samples && row.sampling.slot != row.slot) fault("slot of the sampler differs");
  const auto known = static_cast<int64_t>(row.tokens.size()) - row.drafts;
  if (row.samples && row.sampling.position != row.context_len + known)
    fault("position of the sampler differs");
  if (row.drafts > 0 && (!row.samples || known != 1 || row.room != 1)) fault("drafts of a row that has none");
}

// Blocks that the row may read or write. What a window group looks back on is known only where the steps
// before are computed already.
FakeRunner::Footprint FakeRunner::footprint(const StepRow& row) const {
  Footprint print{row.sequence, row.slot, {}};
  int64_t start = row.tokens[0] == kTokenFromSlot ? slots_[row.slot].length : row.context_len;
  for (size_t g = 0; g < row.block_table.size(); ++g) {
    const KvGroupSpec& group = options_.info.groups[g];
    if (options_.late && group.kind == KvGroupSpec::Kind::kWindow) continue;
    for (size_t i = first_visible(group, start) / options_.info.block_size; i < row.block_table[g].size();
         ++i) {
      print.blocks.push_back(row.block_table[g][i]);
    }
  }
  return print;
}

// What a row writes belongs to no row of another sequence in flight.
void FakeRunner::check_conflicts(const Step& step) {
  for (const InFlight& flight : in_flight_) {
    for (const Footprint& print : flight.rows) {
      for (const StepRow& row : step.rows) {
        if (row.sequence == print.sequence) continue;
        if (row.slot == print.slot) fault(fmt::format("slot {} is still in flight", row.slot));
        int64_t end = row.context_len + static_cast<int64_t>(row.tokens.size()) + row.room - 1;
        for (const auto& table : row.block_table) {
          for (int64_t i = row.context_len / options_.info.block_size; i * options_.info.block_size < end;
               ++i) {
            if (std::find(print.blocks.begin(), print.blocks.end(), table[i]) != print.blocks.end()) {
              fault(fmt::format("block {} is still in flight", table[i]));
            }
          }
        }
      }
    }
  }
}

void FakeRunner::execute(const Step& step, StepOutput& output) {
  for (const StepRow& row : step.rows) execute_row(step, row, output);
}

void FakeRunner::execute_row(const Step& step, const StepRow& row, StepOutput& output) {
  Slot& slot = slots_[row.slot];
  const bool from_slot = row.tokens[0] == kTokenFromSlot;
  if (from_slot && slot.sequence != row.sequence) fault("the slot belongs to another sequence");
  if (from_slot && slot.length > row.context_len) fault("context_len is no upper bound");
  int64_t position = from_slot ? slot.length : row.context_len;
  int32_t token = -1;
  uint64_t value = 0;
  std::vector<OutputToken> scored;
  const size_t known = row.tokens.size() - static_cast<size_t>(row.drafts);
  for (size_t i = 0; i < known; ++i, ++position) {
    token = from_slot ? slot.last : row.tokens[i];
    value = forward(row, token, position);
    if (i < row.targets.size()) scored.push_back(score(options_.info.vocab_size, value, row.targets[i]));
  }
  if (row.targets.size() > row.tokens.size()) fault("more targets than tokens");
  if (!row.targets.empty()) output.scored.push_back(std::move(scored));
  slot = {row.sequence, position - 1, token};
  if (!row.samples) return;
  float surprise = 0;
  std::vector<OutputToken> accepted = sample(step, row, position, value, &surprise);
  if (!accepted.empty()) {
    slot.last = accepted.back().id;
    slot.length = position - 1 + static_cast<int64_t>(accepted.size());
  }
  output.accepted.push_back(std::move(accepted));
  output.surprise.push_back(surprise);
}

// Position: of the first token to draw.
std::vector<OutputToken> FakeRunner::sample(const Step& step, const StepRow& row, int64_t position,
                                            uint64_t value, float* surprise) {
  const SampleRow& s = row.sampling;
  auto count = static_cast<uint64_t>(row.room);
  const auto drafts = row.tokens.last(static_cast<size_t>(row.drafts));
  if (row.drafts > 0) {
    count += drafts.size();
    const bool penalized = s.presence_penalty != 0 || s.frequency_penalty != 0 || s.repetition_penalty != 1;
    if (penalized && !std::equal(drafts.begin(), drafts.end(), s.output.data() + s.output.size()))
      fault("the output is not followed by the drafts");
  } else if (options_.reject_drafts) {
    const uint64_t least = options_.info.tracks_tokens ? 1 : 0;
    count = least + mix(mix(options_.seed, step.id), row.sequence) % (row.room + 1 - least);
  }
  bool penalties = s.presence_penalty != 0 || s.frequency_penalty != 0 || s.repetition_penalty != 1;
  uint64_t history = penalties ? this->history(row, position) : 0;
  std::vector<OutputToken> accepted;
  while (accepted.size() < count) {
    if (!accepted.empty()) value = forward(row, accepted.back().id, position - 1);
    const Shape shape{.seed = s.seed,
                      .history = history,
                      .banned = s.banned,
                      .late_bias = s.late_bias,
                      .mask = s.mask,
                      .mirostat = s.mirostat != 0,
                      .mu = s.mirostat_mu};
    const auto [token, bits] = draw(options_.info.vocab_size, value, position, shape);
    *surprise = bits;
    if (penalties) history = mix(history, static_cast<uint64_t>(token));
    accepted.push_back({.id = token, .logprob = -1.0f});
    ++position;
    if (accepted.size() <= drafts.size() && token != drafts[accepted.size() - 1]) break;
  }
  drafts_seen_ += row.drafts;
  drafts_accepted_ += row.drafts > 0 ? static_cast<int>(accepted.size()) - 1 : 0;
  // Rejected drafts leave their traces.
  for (auto r = static_cast<int64_t>(accepted.size()); r <= row.drafts; ++r) {
    for (size_t g = 0; row.drafts > 0 && g < options_.info.groups.size(); ++g) {
      if (Cell* c = cell(row, g, position - static_cast<int64_t>(accepted.size()) - 1 + r)) *c = {};
    }
  }
  for (auto r = static_cast<int64_t>(std::max<uint64_t>(count, 1)); r < row.room; ++r) {
    for (size_t g = 0; g < options_.info.groups.size(); ++g) {
      if (Cell* c = cell(row, g, position - static_cast<int64_t>(count) - 1 + r)) *c = {};
    }
  }
  return accepted;
}

FakeRunner::Cell* FakeRunner::cell(const StepRow& row, size_t group, int64_t position) {
  auto index = static_cast<size_t>(position / options_.info.block_size);
  const auto& table = row.block_table[group];
  if (index >= table.size() || table[index] < 0 || table[index] >= options_.info.num_blocks) {
    fault(fmt::format("sequence {}: no block for position {}", row.sequence, position));
    return nullptr;
  }
  return &store_[static_cast<size_t>(table[index]) * options_.info.block_size +
                 position % options_.info.block_size];
}

uint64_t FakeRunner::forward(const StepRow& row, int32_t token, int64_t position) {
  ++computed_tokens_;
  uint64_t h = mix(static_cast<uint64_t>(token), static_cast<uint64_t>(position));
  for (size_t g = 0; g < options_.info.groups.size(); ++g) {
    for (int64_t q = first_visible(options_.info.groups[g], position); q < position; ++q) {
      Cell* c = cell(row, g, q);
      if (c == nullptr) return 0;
      if (c->group != static_cast<int>(g) || c->position != q) {
        fault(fmt::format("sequence {} reads position {} of group {}: finds {} of {}", row.sequence, q, g,
                          c->position, c->group));
      }
      h = mix(h, c->value);
    }
  }
  for (size_t g = 0; g < options_.info.groups.size(); ++g) {
    if (Cell* c = cell(row, g, position)) *c = {static_cast<int>(g), position, cell_value(h, g), token};
  }
  return h;
}

// Of the tokens before `position`: as the scheduler gives them or, where the runner is to know them, as the
// first group's cache holds them.
uint64_t FakeRunner::history(const StepRow& row, int64_t position) {
  const SampleRow& s = row.sampling;
  if (!options_.info.tracks_tokens) return history_hash(history_hash(5, s.prompt), s.output);
  if (s.prompt.empty() || static_cast<int64_t>(s.prompt.size()) > position) fault("prompt of another length");
  uint64_t h = 5;
  for (int64_t p = 0; p < position; ++p) {
    const Cell* c = cell(row, 0, p);
    if (c == nullptr || c->position != p) fault(fmt::format("no token at position {}", p));
    h = mix(h, static_cast<uint64_t>(c == nullptr ? -1 : c->token));
  }
  return h;
}

}  // namespace deepinfer::test
