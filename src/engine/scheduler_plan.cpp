// The planning half of the scheduler.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "engine/scheduler.h"
#include "tensor/step_batch.h"

namespace deepinfer {
namespace {

constexpr int32_t kFromSlot[1] = {kTokenFromSlot};
constexpr int64_t kLeastChunk = 64;  // tokens of a prompt: fewer cost as much as so many

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

StepPlan* Scheduler::plan() {
  if (in_flight_ == static_cast<int>(ring_.size())) return nullptr;
  decode_rows_.clear();
  prefill_rows_.clear();
  Round round{.budget = step_budget()};
  plan_running(round);
  if (!round.stalled && !round.preempted) plan_waiting(round);
  if (decode_rows_.empty() && prefill_rows_.empty()) return nullptr;
  StepPlan& plan = ring_[(first_plan_ + in_flight_) % static_cast<int>(ring_.size())];
  ++in_flight_;
  build_step(plan);
  return &plan;
}

// Tokens of a step. A stage waits for the first step until the one before has done it, and the first for the
// last one's end: so prompts come in chunks, several for each stage while they last.
int64_t Scheduler::step_budget() const {
  const int64_t stages = options_.device.stages;
  if (stages == 1 || !options_.enable_chunked_prefill) return budget_;
  const int64_t enough = 2 * stages * budget_;
  int64_t prompts = 0, decodes = 0;
  for (const Sequence* s : running_) {
    const int64_t left = s->samples_in_flight > 0 ? 1 : s->length() - s->planned_computed;
    (left > 1 ? prompts : decodes) += left;
  }
  for (auto s = waiting_.begin(); s != waiting_.end() && prompts < enough; ++s) prompts += (*s)->length();
  const int64_t chunk = prompts == 0 ? 0 : std::max(ceil_div(prompts, 2 * stages), kLeastChunk);
  return std::clamp<int64_t>(ceil_div(decodes, stages) + chunk, 1, budget_);
}

// Whether the next row needs to know the tokens before it, so that it is not planned while one is in flight.
bool Scheduler::needs_commit(const Sequence& s) const {
  if (s.family->sampling->stateful() || options_.device.stages > 1) return true;
  const bool tracked = options_.device.tracks_tokens;
  if (s.family->sampling->penalties && !tracked) return true;
  if (!s.guessed.empty()) return true;  // how many of its drafts count is not known
  // Stop ids are banned by position, and a planned one is an upper bound where a row may accept several.
  return (!tracked || options_.device.max_accepted > 1) && s.bans_stops_at(s.length());
}

bool Scheduler::wants_row(const Sequence& s) const {
  if (s.samples_in_flight > 0) return !needs_commit(s) && s.planned_length() < s.max_len;
  return s.planned_computed < s.length();
}

bool Scheduler::wants_decode(const Sequence& s) const {
  return wants_row(s) && (s.samples_in_flight > 0 || s.length() - s.planned_computed == 1);
}

// The row that `s` would like, of at most `budget` tokens. Its count is 0 when none fits.
PlannedRow Scheduler::make_row(const Sequence& s, int64_t budget) const {
  PlannedRow row{.sequence = const_cast<Sequence*>(&s)};
  row.from_slot = s.samples_in_flight > 0;
  row.start = row.from_slot ? s.planned_length() - 1 : s.planned_computed;
  int64_t left = row.from_slot ? 1 : s.length() - row.start;
  row.count = options_.enable_chunked_prefill || left <= budget ? std::min(left, budget) : 0;
  if (row.count < left) return row;
  row.room = 1;
  if (left == 1 && options_.device.max_accepted > 1 && !s.family->sampling->stateful()) {
    // Drafts take tokens of the budget and stay below the limits; while stop ids are banned, no accepted
    // token may come after the ban's end.
    row.room = std::min({int64_t{options_.device.max_accepted}, s.max_len - s.planned_length(), budget});
    if (s.bans_stops_at(s.length())) row.room = std::min(row.room, s.params().min_tokens - s.output_len());
  }
  return row;
}

// Drafts take tokens of the budget and stay below the limits. The row's room grows by as many guesses as are
// worth their time; the others are kept, for what comes tells how good they are.
void Scheduler::draft(Sequence& s, PlannedRow& row, Round& round, int64_t budget) {
  if (row.from_slot || row.room != 1) return;  // what is in flight is read
  s.guessed.clear();
  const int wanted = s.params().num_speculative_tokens;
  int64_t most = wanted >= 0 ? wanted : options_.speculation.num_tokens;
  if (most == 0 || options_.device.logit_rows == 0 || s.family->sampling->stateful()) return;
  most = std::min({most, int64_t{kMostDrafts}, s.max_len - s.length() - 1, budget - 1, round.drafts});
  // While stop ids are banned, no guess may be sampled after the ban's end.
  if (s.bans_stops_at(s.length())) most = std::min(most, s.params().min_tokens - s.output_len() - 1);
  s.guessed.push_back(s.tokens.back());
  look_up(s.tokens, options_.speculation, static_cast<size_t>(std::max<int64_t>(most, 1)), s.guessed);
  most = std::min(most, static_cast<int64_t>(s.guessed.size()) - 1);
  row.room = 1 + s.record.worth(most, std::max<int64_t>(round.tokens, 1), cost_);
  row.drafted = row.room > 1;
  if (row.drafted) round.drafts -= row.room - 1;
}

void Scheduler::plan_running(Round& round) {
  int64_t decoding = 0;  // with those in flight
  for (const Sequence* s : running_) {
    const bool wants = wants_decode(*s);
    round.decodes += wants;
    decoding += wants || s->samples_in_flight > 0;
  }
  round.share = ceil_div(decoding, options_.device.stages);
  round.decodes = std::min(round.decodes, round.share);
  round.tokens = round.decodes;
  const size_t coming = std::min(free_slots_.size(), waiting_.size());
  round.drafts = options_.device.logit_rows - static_cast<int64_t>(running_.size() + coming);
  bool first = true;
  for (size_t i = 0; i < running_.size() && round.budget > 0; ++i) {
    Sequence& s = *running_[i];
    if (!wants_row(s)) continue;
    const bool decode = wants_decode(s);
    if (decode && round.share-- <= 0) continue;
    round.decodes = std::max<int64_t>(round.decodes - decode, 0);
    int64_t budget = std::max(round.budget - round.decodes, int64_t{decode});
    if (std::exchange(first, false)) {
      // Decodes that wait for a block of this one must not take all tokens from it.
      budget = options_.enable_chunked_prefill ? std::max<int64_t>(budget, 1) : round.budget;
    }
    PlannedRow row = make_row(s, budget);
    if (row.count == 0) continue;
    if (decode) draft(s, row, round, budget);
    if (!make_room(s, row, round)) {
      round.stalled = true;
      return;
    }
    place(row, round);
  }
}

void Scheduler::cut_to_fit(const Sequence& s, PlannedRow& row) const {
  if (row.room > 1) {  // drafts are a luxury
    int64_t fits = pool_.growable(s.tables, row.start + row.count + row.room - 1);
    row.room = std::clamp<int64_t>(fits - row.start - row.count + 1, 1, row.room);
  }
  if (row.count > 1 && options_.enable_chunked_prefill) {
    int64_t fits = pool_.growable(s.tables, row.start + row.count) - row.start;
    if (fits > 0 && fits < row.count) {
      row.count = fits;
      row.room = 0;
    }
  }
}

// Takes the blocks that the row writes to, from others if need be. False: some other has rows in flight and
// could give blocks after them, or this one is the last in order and waits for the others to end.
bool Scheduler::make_room(Sequence& s, PlannedRow& row, Round& round) {
  while (true) {
    cut_to_fit(s, row);
    if (pool_.grow(s.tables, row.start + row.count + std::max<int64_t>(row.room - 1, 0))) return true;
    Sequence* other = victim(s);
    if (other == nullptr) return false;
    round.decodes = std::max<int64_t>(round.decodes - wants_decode(*other), 0);
    round.preempted = true;
    preempt(*other);
  }
}

Sequence* Scheduler::victim(const Sequence& s) const {
  for (size_t i = running_.size(); i-- > 0 && running_[i] != &s;) {
    if (running_[i]->rows_in_flight == 0) return running_[i];
  }
  return nullptr;
}

void Scheduler::preempt(Sequence& s) {
  std::erase(running_, &s);
  int64_t blocks = release(s);
  s.state = Sequence::State::kWaiting;
  s.num_computed = s.planned_computed = s.published_blocks = 0;
  waiting_.insert(std::upper_bound(waiting_.begin(), waiting_.end(), &s,
                                   [](const Sequence* a, const Sequence* b) { return a->before(*b); }),
                  &s);
  event(SchedulerEvent::Kind::kPreempted, s, blocks);
}

void Scheduler::place(const PlannedRow& row, Round& round) {
  Sequence& s = *row.sequence;
  round.budget -= row.count + std::max<int64_t>(row.room - 1, 0);
  ++s.rows_in_flight;
  if (!row.from_slot) s.planned_computed += row.count;
  if (row.room > 0) {
    ++s.samples_in_flight;
    s.planned_room += row.room;
  }
  round.tokens += row.drafted ? row.room - 1 : 0;
  (row.count == 1 && !(row.drafted && row.room > 1) ? decode_rows_ : prefill_rows_).push_back(row);
}

// Blocks that running sequences will need before they know all their tokens' KV.
int64_t Scheduler::reserved_blocks() const {
  int64_t sum = 0;
  for (const Sequence* s : running_) {
    if (s->samples_in_flight == 0 && s->planned_computed < s->length()) {
      sum += std::min(pool_.missing(s->tables, s->length()), pool_.peak_blocks(s->length(), budget_));
    }
  }
  return sum;
}

void Scheduler::plan_waiting(Round& round) {
  for (size_t i = 0; i < waiting_.size() && round.budget > 0 && !free_slots_.empty();) {
    Sequence& s = *waiting_[i];
    if (s.choice > 0 && !s.family->prompt_ready) {  // shares the prefill of the first choice
      ++i;
      continue;
    }
    if (!admit(s, round)) return;
    waiting_.erase(waiting_.begin() + static_cast<int64_t>(i));
  }
}

bool Scheduler::admit(Sequence& s, Round& round) {
  if (s.failed_epoch == pool_.free_epoch() && !running_.empty()) return false;
  if (options_.enable_prefix_caching && !s.wants_scores()) {
    int64_t blocks = (s.length() - 1) / pool_.block_size();  // at least one token is computed
    extend_keys(s, blocks);
    s.published_blocks = pool_.match_prefix(std::span(s.keys).first(blocks), s.tables);
    s.num_computed = s.planned_computed = s.published_blocks * pool_.block_size();
  }
  PlannedRow row = make_row(s, round.budget);
  bool fits = row.count > 0;
  if (fits && !running_.empty()) {
    int64_t want =
        std::min(pool_.missing(s.tables, s.length() + 1), pool_.peak_blocks(s.length() + 1, budget_));
    fits = want + reserved_blocks() + pool_.total_blocks() / 100 <= pool_.free_blocks();
  } else if (fits) {
    cut_to_fit(s, row);
  }
  if (!fits || !pool_.grow(s.tables, row.start + row.count + std::max<int64_t>(row.room - 1, 0))) {
    pool_.release(s.tables);
    s.num_computed = s.planned_computed = s.published_blocks = 0;
    s.failed_epoch = row.count > 0 ? pool_.free_epoch() : ~uint64_t{0};
    return false;
  }
  s.slot = free_slots_.back();
  free_slots_.pop_back();
  s.state = Sequence::State::kRunning;
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &s,
                                   [](const Sequence* a, const Sequence* b) { return a->before(*b); }),
                  &s);
  if (!s.was_scheduled) s.cached_tokens = s.num_computed;
  event(SchedulerEvent::Kind::kScheduled, s, 0);
  s.was_scheduled = true;
  place(row, round);
  return true;
}

void Scheduler::build_step(StepPlan& plan) {
  plan.rows.assign(decode_rows_.begin(), decode_rows_.end());
  plan.rows.insert(plan.rows.end(), prefill_rows_.begin(), prefill_rows_.end());
  plan.tokens = 0;
  plan.decodes_only = true;
  plan.step.id = next_step_++;
  plan.step.copies.clear();
  plan.step.rows.resize(plan.rows.size());
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    const PlannedRow& row = plan.rows[i];
    plan.tokens += row.count + (row.drafted ? row.room - 1 : 0);
    plan.decodes_only = plan.decodes_only && row.count == 1;
    fill_row(plan.step.rows[i], plan.rows[i]);
  }
}

void Scheduler::fill_row(StepRow& out, const PlannedRow& row) {
  Sequence& s = *row.sequence;
  out.sequence = s.id;
  out.slot = s.slot;
  out.context_len = static_cast<int32_t>(row.start);
  out.tokens = row.from_slot ? std::span<const int32_t>(kFromSlot)
                             : std::span<const int32_t>(s.tokens).subspan(row.start, row.count);
  out.drafts = row.drafted ? static_cast<int32_t>(row.room - 1) : 0;
  if (out.drafts > 0) out.tokens = std::span<const int32_t>(s.guessed).first(static_cast<size_t>(row.room));
  out.block_table = s.tables;
  out.samples = row.room > 0;
  out.room = row.drafted ? 1 : static_cast<int32_t>(std::max<int64_t>(row.room, 1));
  out.sampling = {};
  out.targets = {};
  if (s.wants_scores() && row.start + 1 < s.prompt_len) {
    const int64_t count = std::min(row.count, s.prompt_len - 1 - row.start);
    out.targets = std::span<const int32_t>(s.tokens).subspan(row.start + 1, count);
    out.target_top = s.params().prompt_logprobs;
  }
  if (!out.samples) return;
  fill_sampling(s, row.start + row.count, out.sampling);
  if (out.drafts == 0 || !s.family->sampling->penalties) return;
  const auto drafts = out.tokens.subspan(1);
  s.output_and_guessed.assign(s.output().begin(), s.output().end());
  s.output_and_guessed.insert(s.output_and_guessed.end(), drafts.begin(), drafts.end());
  out.sampling.output = std::span<const int32_t>(s.output_and_guessed).first(s.output().size());
}

}  // namespace deepinfer
