#include "engine/scheduler.h"

#include <algorithm>

#include "base/check.h"

namespace deepinfer {

Scheduler::Scheduler(SchedulerOptions options)
    : options_(std::move(options)),
      pool_(options_.device.groups, options_.device.block_size, options_.device.num_blocks,
            options_.device.touched_first),
      budget_(options_.max_num_batched_tokens) {
  const ModelRunner::Info& device = options_.device;
  DI_CHECK(budget_ > 0 && device.num_slots > 0 && device.max_in_flight > 0 && device.max_accepted > 0,
           "scheduler with {} tokens a step, {} slots, {} steps in flight, {} accepted tokens", budget_,
           device.num_slots, device.max_in_flight, device.max_accepted);
  // Whatever is admitted can be computed with the whole pool, in one piece where chunks are not cut.
  bool chunked = options_.enable_chunked_prefill;
  max_len_ = pool_.max_positions(device.max_model_len, chunked ? 1 : device.max_model_len);
  if (!chunked) max_len_ = std::min(max_len_, budget_);
  for (int32_t slot = device.num_slots; slot-- > 0;) free_slots_.push_back(slot);
  ring_.resize(static_cast<size_t>(device.max_in_flight));
}

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  Sequence* s = sequence.get();
  DI_CHECK(s->prompt_len > 0 && s->prompt_len < s->max_len && s->max_len <= max_len_,
           "sequence {} of {} tokens to {}, expected at most {}", s->id, s->prompt_len, s->max_len, max_len_);
  bool fresh = sequences_.emplace(s->id, std::move(sequence)).second;
  DI_CHECK(fresh, "sequence {} was added twice", s->id);
  waiting_.insert(std::upper_bound(waiting_.begin(), waiting_.end(), s,
                                   [](const Sequence* a, const Sequence* b) { return a->before(*b); }),
                  s);
}

void Scheduler::end_request(uint64_t request, FinishReason reason) {
  for (int choice = 0; choice < kMaxChoices; ++choice) end_sequence(sequence_id(request, choice), reason);
}

void Scheduler::end_sequence(uint64_t sequence, FinishReason reason) {
  auto it = sequences_.find(sequence);
  if (it != sequences_.end() && it->second->state != Sequence::State::kFinished) finish(*it->second, reason);
}

void Scheduler::clear_events() {
  events_.clear();
  finished_.clear();
}

void Scheduler::event(SchedulerEvent::Kind kind, const Sequence& s, int64_t blocks) {
  events_.push_back({kind, &s, !s.was_scheduled, s.num_computed, blocks, pool_.free_blocks()});
}

void Scheduler::shrink_budget() {
  if (options_.enable_chunked_prefill) {
    budget_ = std::max<int64_t>(budget_ / 2, std::min<int64_t>(budget_, options_.device.num_slots));
  }
}

// Takes the row out of what is in flight for its sequence.
void Scheduler::account(const PlannedRow& row) {
  Sequence& s = *row.sequence;
  --s.rows_in_flight;
  if (row.room > 0) {
    --s.samples_in_flight;
    s.planned_room -= row.room;
  }
}

void Scheduler::commit(StepPlan& plan, const StepOutput& output, std::vector<Emission>& emissions) {
  DI_CHECK(&plan == oldest(), "step {} is not the oldest in flight", plan.step.id);
  size_t sampling_rows = 0, next = 0;
  for (const PlannedRow& row : plan.rows) sampling_rows += row.room > 0;
  DI_CHECK(output.accepted.size() == sampling_rows, "step {}: tokens of {} rows, expected {}", plan.step.id,
           output.accepted.size(), sampling_rows);
  DI_CHECK(output.surprise.empty() || output.surprise.size() == sampling_rows,
           "step {}: surprises of {} rows, expected {}", plan.step.id, output.surprise.size(), sampling_rows);
  first_plan_ = (first_plan_ + 1) % static_cast<int>(ring_.size());
  --in_flight_;
  commit_scores(plan, output);
  for (const PlannedRow& row : plan.rows) {
    std::span<const OutputToken> accepted;
    float surprise = 0;
    if (row.room > 0) {
      if (!output.surprise.empty()) surprise = output.surprise[next];
      accepted = output.accepted[next++];
    }
    commit_row(row, accepted, surprise, emissions);
  }
}

void Scheduler::commit_scores(const StepPlan& plan, const StepOutput& output) {
  size_t next = 0;
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    const StepRow& row = plan.step.rows[i];
    if (row.targets.empty()) continue;
    DI_CHECK(next < output.scored.size() && output.scored[next].size() == row.targets.size(),
             "step {}: scores of row {}, expected {} of them", plan.step.id, i, row.targets.size());
    Sequence& s = *plan.rows[i].sequence;
    const std::vector<OutputToken>& scored = output.scored[next++];
    // Computed again after a preemption: those that are there stay.
    const auto have = static_cast<int64_t>(s.prompt_scores.size()) - plan.rows[i].start;
    DI_CHECK(have >= 0, "sequence {}: scores from {} on, {} are there", s.id, plan.rows[i].start,
             s.prompt_scores.size());
    for (auto k = static_cast<size_t>(have); k < scored.size(); ++k) s.prompt_scores.push_back(scored[k]);
  }
}

void Scheduler::commit_row(const PlannedRow& row, std::span<const OutputToken> accepted, float surprise,
                           std::vector<Emission>& emissions) {
  Sequence& s = *row.sequence;
  DI_CHECK(accepted.size() <= static_cast<size_t>(row.room), "sequence {}: {} tokens accepted, room for {}",
           s.id, accepted.size(), row.room);
  account(row);
  if (s.state == Sequence::State::kFinished) {
    // Ended while the row was in flight: its tokens are nobody's, but what it computed of known tokens stays
    // good for the prefix cache.
    if (!row.from_slot) s.num_computed = row.start + row.count;
    publish(s);
    if (s.rows_in_flight == 0) release(s);
    return;
  }
  if (row.room == 0) {
    s.num_computed = row.start + row.count;
  } else {
    learn(row, accepted);
    append(s, accepted, emissions);
    if (!accepted.empty() && s.params().mirostat != 0)
      s.mirostat_mu -= s.params().mirostat_eta * (surprise - s.params().mirostat_tau);
    // The last token's KV is computed with the next row; with nothing accepted, the last input is computed
    // again.
    s.num_computed = s.length() - 1;
    s.planned_computed = s.num_computed;
  }
  publish(s);
  if (!s.family->prompt_ready && s.choice == 0) {
    s.family->prompt_ready = s.published_blocks >= (s.prompt_len - 1) / pool_.block_size();
  }
  if (s.finish != FinishReason::kNone) {
    finish(s, s.finish);
  } else {
    pool_.trim(s.tables, s.num_computed);
  }
}

void Scheduler::learn(const PlannedRow& row, std::span<const OutputToken> accepted) {
  Sequence& s = *row.sequence;
  if (row.drafted && row.room > 1) {
    ++drafts_.drafts;
    drafts_.tokens += static_cast<uint64_t>(row.room) - 1;
    drafts_.accepted += accepted.empty() ? 0 : accepted.size() - 1;
  }
  for (size_t i = 0; i < accepted.size() && i + 1 < s.guessed.size(); ++i)
    s.record.observe(accepted[i].id == s.guessed[i + 1]);
  s.guessed.clear();
}

void Scheduler::append(Sequence& s, std::span<const OutputToken> accepted, std::vector<Emission>& emissions) {
  if (s.family->max_tokens == 0 && !accepted.empty()) {  // the prompt's scores were all that was wanted
    s.finish = FinishReason::kLength;
    emissions.push_back({&s, {}, s.finish});
    return;
  }
  size_t count = 0;
  while (count < accepted.size() && s.finish == FinishReason::kNone) {
    const int32_t id = accepted[count++].id;
    bool stops = s.output_len() >= s.params().min_tokens && s.family->sampling->stops(id);
    s.tokens.push_back(id);
    if (stops) {
      s.finish = FinishReason::kStop;
      s.stop_token = id;
    } else if (s.length() >= s.max_len) {
      s.finish = FinishReason::kLength;
    }
  }
  if (count > 0) emissions.push_back({&s, accepted.first(count), s.finish});
}

void Scheduler::extend_keys(Sequence& s, int64_t blocks) {
  const int64_t size = pool_.block_size();
  for (auto i = static_cast<int64_t>(s.keys.size()); i < blocks; ++i) {
    auto tokens = std::span<const int32_t>(s.tokens).subspan(i * size, size);
    s.keys.push_back(hasher_.next(i == 0 ? s.family->root : s.keys.back(), tokens));
  }
}

void Scheduler::publish(Sequence& s) {
  const int64_t full = s.num_computed / pool_.block_size();
  if (!options_.enable_prefix_caching || full <= s.published_blocks) return;
  extend_keys(s, full);
  for (; s.published_blocks < full; ++s.published_blocks) {
    pool_.publish(s.tables, s.published_blocks, s.keys[s.published_blocks]);
  }
}

void Scheduler::finish(Sequence& s, FinishReason reason) {
  std::erase(s.state == Sequence::State::kRunning ? running_ : waiting_, &s);
  s.state = Sequence::State::kFinished;
  s.finish = reason;
  if (s.choice == 0) s.family->prompt_ready = true;  // nobody else will compute it
  event(SchedulerEvent::Kind::kFinished, s, 0);
  if (s.rows_in_flight == 0) release(s);
}

// Gives blocks and slot back. A finished sequence leaves the table of sequences.
int64_t Scheduler::release(Sequence& s) {
  DI_CHECK(s.rows_in_flight == 0, "sequence {} released with {} rows in flight", s.id, s.rows_in_flight);
  int64_t blocks = pool_.release(s.tables);
  if (s.slot >= 0) free_slots_.push_back(s.slot);
  s.slot = -1;
  if (s.state == Sequence::State::kFinished) {
    event(SchedulerEvent::Kind::kReleased, s, blocks);
    auto node = sequences_.extract(s.id);
    finished_.push_back(std::move(node.mapped()));
  }
  return blocks;
}

void Scheduler::rollback() {
  std::vector<Sequence*> touched;
  for (; in_flight_ > 0; --in_flight_) {
    StepPlan& plan = ring_[first_plan_];
    first_plan_ = (first_plan_ + 1) % static_cast<int>(ring_.size());
    for (const PlannedRow& row : plan.rows) {
      account(row);
      Sequence& s = *row.sequence;
      s.planned_computed = s.num_computed;
      if (s.rows_in_flight == 0) touched.push_back(&s);
    }
  }
  for (Sequence* s : touched) {
    if (s->state == Sequence::State::kFinished) release(*s);
  }
}

void Scheduler::check_invariants() const {
  std::vector<const BlockTables*> users;
  std::vector<int> slot_users(static_cast<size_t>(options_.device.num_slots), 0);
  size_t running = 0, waiting = 0;
  for (const auto& [id, s] : sequences_) {
    check_sequence(*s);
    running += s->state == Sequence::State::kRunning;
    waiting += s->state == Sequence::State::kWaiting;
    if (!s->tables.empty()) users.push_back(&s->tables);
    if (s->slot >= 0) ++slot_users[s->slot];
  }
  DI_CHECK(running == running_.size() && waiting == waiting_.size(),
           "{} running and {} waiting sequences, listed {} and {}", running, waiting, running_.size(),
           waiting_.size());
  auto ordered = [](const Sequence* a, const Sequence* b) { return a->before(*b); };
  DI_CHECK(std::is_sorted(running_.begin(), running_.end(), ordered) &&
               std::is_sorted(waiting_.begin(), waiting_.end(), ordered),
           "sequences out of order");
  for (int32_t slot : free_slots_) ++slot_users[slot];
  for (int count : slot_users) DI_CHECK(count == 1, "a slot has {} users", count);
  pool_.check_invariants(users);
}

void Scheduler::check_sequence(const Sequence& s) const {
  int rows = 0, samples = 0;
  int64_t room = 0;
  for (int i = 0; i < in_flight_; ++i) {
    for (const PlannedRow& row : ring_[(first_plan_ + i) % static_cast<int>(ring_.size())].rows) {
      if (row.sequence != &s) continue;
      ++rows;
      samples += row.room > 0;
      room += row.room;
    }
  }
  DI_CHECK(rows == s.rows_in_flight && samples == s.samples_in_flight && room == s.planned_room,
           "sequence {}: {} rows in flight, counted {}", s.id, rows, s.rows_in_flight);
  const bool waits = s.state == Sequence::State::kWaiting;
  const bool empty = s.tables.empty() || s.tables[0].empty();
  DI_CHECK(!waits || (rows == 0 && s.slot < 0 && empty), "waiting sequence {} holds something", s.id);
  DI_CHECK(waits || s.slot >= 0, "sequence {} has no slot", s.id);
  DI_CHECK(s.length() <= s.max_len && s.num_computed <= s.length() && s.planned_computed >= s.num_computed,
           "sequence {}: {} of {} tokens computed, {} planned", s.id, s.num_computed, s.length(),
           s.planned_computed);
  if (waits) return;
  // What a coming row writes to must be its own.
  for (const auto& table : s.tables) {
    for (size_t i = s.num_computed / pool_.block_size(); i < table.size(); ++i) {
      DI_CHECK(table[i] >= 0 && pool_.writable(table[i]), "sequence {} writes to block {} of others", s.id,
               table[i]);
    }
  }
}

}  // namespace deepinfer
