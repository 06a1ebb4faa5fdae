#include "engine/pipeline_rank.h"

#include <cstring>

#include "base/check.h"

namespace deepinfer {
namespace {

constexpr int32_t kMostWords = 1 << 24;
constexpr int64_t kMostTokens = 1 << 21;

std::span<const std::byte> bytes_of(const PipelineHead& head) {
  return std::as_bytes(std::span(&head, 1));
}

std::span<std::byte> writable(PipelineHead& head) {
  return std::as_writable_bytes(std::span(&head, 1));
}

}  // namespace

void PipelineComms::abort(const std::string& reason) {
  if (stage) stage->abort(reason);
  if (world) world->abort(reason);
}

std::span<std::byte> PipelineRank::Body::of(size_t bytes) {
  if (memory_.size() < bytes) {
    memory_ = {};
    Result<Buffer> made = Buffer::allocate(bytes + bytes / 2);
    if (!made) throw std::bad_alloc();
    memory_ = std::move(*made);
  }
  return {static_cast<std::byte*>(memory_.data()), bytes};
}

void PipelineRank::join(PipelineComms& comms) {
  comms_ = &comms;
  runner_.join(comms.stage.get());
}

void PipelineRank::check(const PipelineHead& head) const {
  const bool good = head.words >= 0 && head.words <= kMostWords && head.scored >= 0 && head.sampled >= 0 &&
                    head.amount >= 0 &&
                    (head.kind == PipelineHead::kStep
                         ? head.amount <= kMostTokens
                         : head.kind >= PipelineHead::kHead && head.kind <= PipelineHead::kEnd);
  DI_CHECK(good, "a message of kind {} with {} numbers, {} and {} rows, {}", head.kind, head.words,
           head.scored, head.sampled, head.amount);
}

std::span<std::byte> PipelineRank::body_of(const PipelineHead& head) {
  const size_t hidden = static_cast<size_t>(head.amount) * runner_.hidden() * sizeof(float);
  return body_.of(hidden + static_cast<size_t>(head.words) * sizeof(int32_t));
}

void PipelineRank::tell_stage(const PipelineHead& head, std::span<const int32_t> words) {
  if (comms_->stage == nullptr) return;
  PipelineHead copy = head;
  comms_->stage->broadcast(writable(copy), 0);
  // The root's bytes are only read.
  if (!words.empty())
    comms_->stage->broadcast(
        std::as_writable_bytes(std::span(const_cast<int32_t*>(words.data()), words.size())), 0);
}

void PipelineRank::pass(const PipelineHead& head) {
  if (!place_.last()) comms_->world->send_copy(bytes_of(head), place_.behind());
}

void PipelineRank::start(const Step& step, const PipelineHead& head, std::span<const int32_t> words) {
  const std::span<std::byte> body = body_of(head);
  const std::span<std::byte> tail = body.last(words.size_bytes());
  if (!words.empty()) std::memcpy(tail.data(), words.data(), words.size_bytes());
  forward(step, head, body);
}

void PipelineRank::forward(const Step& step, const PipelineHead& head, std::span<std::byte> body) {
  int64_t tokens = 0;
  for (const StepRow& row : step.rows) tokens += std::ssize(row.tokens);
  DI_CHECK(tokens == head.amount, "a step of {} tokens, told of {}", tokens, head.amount);
  const Tensor hidden = make_tensor(body.data(), DType::kF32, {tokens, runner_.hidden()});
  runner_.forward_layers(step, hidden, place_.first());
  Communicator& world = *comms_->world;
  if (!place_.last()) {
    world.send_copy(bytes_of(head), place_.behind());
    world.send_copy(body, place_.behind());
    return;
  }
  const CpuRunner::Rows count = CpuRunner::wanted_rows(step);
  const PipelineHead back{.kind = PipelineHead::kRows,
                          .scored = static_cast<int32_t>(count.scored),
                          .sampled = static_cast<int32_t>(count.sampled)};
  world.send_copy(bytes_of(back), place_.share());
  if (count.all() == 0) return;
  const auto rows = rows_.of(static_cast<size_t>(count.all()) * runner_.hidden() * sizeof(float));
  runner_.copy_wanted(hidden, reinterpret_cast<float*>(rows.data()));
  world.send_copy(rows, place_.share());
}

Tensor PipelineRank::receive_rows(const CpuRunner::Rows& count) {
  PipelineHead head;
  comms_->world->receive(writable(head), place_.end());
  if (head.kind != PipelineHead::kRows || head.scored != count.scored || head.sampled != count.sampled)
    throw CommError(place_.rank, place_.ranks(), "receive",
                    fmt::format("rank {} sent {} and {} rows, expected {} and {}", place_.end(), head.scored,
                                head.sampled, count.scored, count.sampled));
  const auto rows = rows_.of(static_cast<size_t>(count.all()) * runner_.hidden() * sizeof(float));
  if (!rows.empty()) comms_->world->receive(rows, place_.end());
  return make_tensor(rows.data(), DType::kF32, {count.all(), runner_.hidden()});
}

int64_t PipelineRank::receive_released() {
  int64_t bytes = 0;
  for (int share = 0; share < place_.shares; ++share) {
    PipelineHead head;
    comms_->world->receive(writable(head), place_.end() + share);
    check(head);
    DI_CHECK(head.kind == PipelineHead::kReleased, "a message of kind {} after a release", head.kind);
    bytes += head.amount;
  }
  return bytes;
}

PipelineHead PipelineRank::hear() {
  PipelineHead head;
  if (place_.first()) {
    comms_->stage->broadcast(writable(head), 0);
  } else {
    comms_->world->receive(writable(head), place_.before());
  }
  check(head);
  return head;
}

void PipelineRank::step(const PipelineHead& head, StepDecoder& decoder) {
  const std::span<std::byte> body = body_of(head);
  const std::span<std::byte> tail = body.last(static_cast<size_t>(head.words) * sizeof(int32_t));
  if (place_.first()) {
    if (!tail.empty()) comms_->stage->broadcast(tail, 0);
  } else {
    comms_->world->receive(body, place_.before());
  }
  const auto words =
      std::span(reinterpret_cast<const int32_t*>(tail.data()), static_cast<size_t>(head.words));
  const Result<const Step*> step = decoder.decode(words);
  DI_CHECK(step.ok(), "{}", step.error().message);
  forward(**step, head, body);
}

void PipelineRank::release(PipelineHead head) {
  head.amount += runner_.release_unused();
  if (!place_.last()) return pass(head);
  head.kind = PipelineHead::kReleased;
  comms_->world->send_copy(bytes_of(head), 0);
}

// False: rank 0 has ended.
bool PipelineRank::obey(PipelineHead head, StepDecoder& decoder) {
  switch (head.kind) {
    case PipelineHead::kStep:
      step(head, decoder);
      return true;
    case PipelineHead::kHead: {
      const CpuRunner::Rows count{head.scored, head.sampled};
      runner_.launch_head(nullptr, count, receive_rows(count));
      return true;
    }
    case PipelineHead::kRelease:
      release(head);
      return true;
    default:
      pass(head);
      return head.kind != PipelineHead::kEnd;
  }
}

void PipelineRank::follow() {
  const ModelRunner::Info& info = runner_.info();
  StepDecoder decoder({.slots = info.num_slots,
                       .blocks = info.num_blocks,
                       .groups = static_cast<int>(info.groups.size()),
                       .vocab = info.vocab_size,
                       .max_model_len = info.max_model_len});
  try {
    while (obey(hear(), decoder)) {
    }
  } catch (const std::exception& e) {
    comms_->abort(fmt::format("rank {}: {}", place_.rank, e.what()));
    throw;
  }
}

}  // namespace deepinfer
