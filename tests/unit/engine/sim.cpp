#include "sim.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace deepinfer::test {
namespace {

std::string compare_scores(const std::vector<OutputToken>& got, const std::vector<OutputToken>& want,
                           bool part) {
  if (part ? got.size() > want.size() : got.size() != want.size())
    return fmt::format("{} scores, expected {}", got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i].id != want[i].id || got[i].rank != want[i].rank || got[i].logprob != want[i].logprob)
      return fmt::format("score {} is that of token {}, rank {}, expected {} and {}", i, got[i].id,
                         got[i].rank, want[i].id, want[i].rank);
  }
  return {};
}

}  // namespace

Sim::Sim(SimOptions options)
    : options_(std::move(options)),
      runner_(options_.fake),
      scheduler_({options_.fake.info, options_.budget, options_.chunked, options_.prefix_caching,
                  options_.speculation}) {}

uint64_t Sim::add(EngineRequest request) {
  if (static_cast<int64_t>(request.prompt.size()) >= scheduler_.max_len()) return 0;
  SequenceLimits limits{scheduler_.max_len(), options_.fake.info.vocab_size, options_.fake.info.block_size,
                        options_.prefix_caching, options_.end_ids};
  uint64_t id = next_request_++;
  OracleRequest expected{request.prompt, request.sampling, 0, options_.end_ids, scheduler_.max_len()};
  for (auto& s : make_sequences(id, std::move(request), limits)) {
    expected.seed = s->seed;
    if (s->choice > 0) expected.sampling.prompt_logprobs = -1;  // the first choice scores the prompt of all
    sequences_[s->id].oracle = expected;
    scheduler_.add(std::move(s));
  }
  return id;
}

void Sim::cancel(uint64_t request) {
  scheduler_.end_request(request, FinishReason::kCancelled);
  collect();
}

bool Sim::launch() {
  StepPlan* plan = scheduler_.plan();
  collect();
  if (plan == nullptr) return false;
  last_plan_ = plan;
  runner_.launch_forward(plan->step);
  runner_.launch_sample(plan->step);
  launched_.push_back(plan->step.id);
  return true;
}

bool Sim::commit() {
  StepPlan* plan = scheduler_.oldest();
  if (plan == nullptr) return false;
  StepOutput output = runner_.wait(plan->step.id);
  launched_.erase(launched_.begin());
  emissions_.clear();
  scheduler_.commit(*plan, output, emissions_);
  for (const Emission& e : emissions_) {
    for (const OutputToken& t : e.tokens) sequences_[e.sequence->id].output.push_back(t.id);
  }
  collect();
  return true;
}

void Sim::step() {
  while (launch()) {
  }
  commit();
}

void Sim::run(int max_steps) {
  for (int i = 0; i < max_steps && !scheduler_.empty(); ++i) {
    step();
    scheduler_.check_invariants();
  }
}

void Sim::rollback() {
  for (uint64_t id : launched_) (void)runner_.wait(id);
  launched_.clear();
  scheduler_.rollback();
  collect();
}

void Sim::collect() {
  for (const SchedulerEvent& e : scheduler_.events()) {
    SimSequence& s = sequences_[e.sequence->id];
    switch (e.kind) {
      case SchedulerEvent::Kind::kScheduled:
        if (e.first) {
          s.cached_tokens = e.cached_tokens;
          schedule_order_.push_back(e.sequence->request);
        }
        break;
      case SchedulerEvent::Kind::kPreempted:
        ++s.preemptions;
        break;
      case SchedulerEvent::Kind::kFinished:
        s.finish = e.sequence->finish;
        s.scores = e.sequence->prompt_scores;
        break;
      case SchedulerEvent::Kind::kReleased:
        s.released = e.blocks;
        break;
    }
  }
  scheduler_.clear_events();
}

std::string Sim::verdict() const {
  if (!runner_.faults().empty()) return fmt::format("runner: {}", fmt::join(runner_.faults(), "; "));
  if (!scheduler_.empty()) return "sequences are left";
  if (scheduler_.pool().free_blocks() != scheduler_.pool().total_blocks()) {
    return fmt::format("{} of {} blocks are free at the end", scheduler_.pool().free_blocks(),
                       scheduler_.pool().total_blocks());
  }
  for (const auto& [id, s] : sequences_) {
    OracleOutput want = oracle(options_.fake.info, s.oracle);
    bool ended_early = s.finish == FinishReason::kCancelled || s.finish == FinishReason::kError;
    if (ended_early && s.output.size() <= want.tokens.size()) want.tokens.resize(s.output.size());
    if (s.output != want.tokens) {
      return fmt::format("sequence {}: got [{}], expected [{}]", id, fmt::join(s.output, " "),
                         fmt::join(want.tokens, " "));
    }
    if (std::string wrong = compare_scores(s.scores, want.scores, ended_early); !wrong.empty())
      return fmt::format("sequence {}: {}", id, wrong);
    if (!ended_early && s.finish != want.finish) {
      return fmt::format("sequence {}: finish {}, expected {}", id, static_cast<int>(s.finish),
                         static_cast<int>(want.finish));
    }
  }
  return {};
}

std::vector<int32_t> iota_prompt(int length, int start, int vocab) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < length; ++i) prompt.push_back((start + i) % vocab);
  return prompt;
}

}  // namespace deepinfer::test
