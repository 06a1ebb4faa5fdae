#include "engine/rank_leader.h"

#include <array>

#include "base/check.h"

namespace deepinfer {
namespace {

enum Kind : int32_t { kStep = 1, kNothing, kRelease, kEnd };

std::span<std::byte> bytes_of(std::span<int32_t> numbers) {
  return std::as_writable_bytes(numbers);
}

}  // namespace

RankLeader::RankLeader(std::unique_ptr<Communicator> comm, std::unique_ptr<CpuRunner> runner,
                       std::chrono::milliseconds timeout)
    : comm_(std::move(comm)), runner_(std::move(runner)), pause_(timeout / 4) {
  awake_ = std::thread([this] { keep_awake(); });
}

RankLeader::~RankLeader() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    wake_.notify_all();
    try {
      if (lost_.empty()) tell(kEnd, {});
    } catch (const std::exception&) {  // they are gone already
    }
  }
  awake_.join();
}

// Every rank comes here for a header, then for as many numbers as it says.
void RankLeader::tell(int32_t kind, std::span<const int32_t> numbers) {
  std::array<int32_t, 2> header = {kind, static_cast<int32_t>(numbers.size())};
  comm_->broadcast(bytes_of(header), 0);
  // The root's bytes are only read.
  if (!numbers.empty()) comm_->broadcast(bytes_of({const_cast<int32_t*>(numbers.data()), numbers.size()}), 0);
  spoke_ = true;
}

template <class Work>
void RankLeader::together(const Work& work) {
  std::lock_guard lock(mutex_);
  if (!lost_.empty()) throw DeviceLost(lost_);
  try {
    work();
  } catch (const std::exception& e) {
    lost_ = fmt::format("the group of ranks has ended: {}", e.what());
    comm_->abort(e.what());
    throw DeviceLost(lost_);
  }
}

void RankLeader::launch_forward(const Step& step) {
  together([&] {
    tell(kStep, encoder_.encode(step, runner_->slots()));
    runner_->launch_forward(step);
  });
}

int64_t RankLeader::release_unused() {
  int64_t bytes = 0;
  together([&] {
    tell(kRelease, {});
    bytes = runner_->release_unused();
  });
  return bytes;
}

void RankLeader::keep_awake() {
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, pause_, [this] { return stop_ || !lost_.empty(); })) {
    if (std::exchange(spoke_, false)) continue;
    try {
      tell(kNothing, {});
    } catch (const std::exception& e) {  // the engine hears of it with its next step
      lost_ = fmt::format("the group of ranks has ended: {}", e.what());
    }
  }
}

void follow_leader(Communicator& comm, CpuRunner& runner) {
  const ModelRunner::Info& info = runner.info();
  StepDecoder decoder({.slots = info.num_slots,
                       .blocks = info.num_blocks,
                       .groups = static_cast<int>(info.groups.size()),
                       .vocab = info.vocab_size,
                       .max_model_len = info.max_model_len});
  constexpr int32_t kMost = 1 << 24;
  std::vector<int32_t> numbers;
  try {
    for (;;) {
      std::array<int32_t, 2> header{};
      comm.broadcast(bytes_of(header), 0);
      DI_CHECK(header[1] >= 0 && header[1] <= kMost, "a step of {} numbers from rank 0", header[1]);
      numbers.resize(static_cast<size_t>(header[1]));
      if (!numbers.empty()) comm.broadcast(bytes_of(numbers), 0);
      if (header[0] == kEnd) return;
      if (header[0] == kRelease) runner.release_unused();
      if (header[0] != kStep) continue;
      const Result<const Step*> step = decoder.decode(numbers);
      DI_CHECK(step.ok(), "{}", step.error().message);
      runner.launch_forward(**step);
    }
  } catch (const CommError&) {
    throw;
  } catch (const std::exception& e) {
    comm.abort(fmt::format("rank {}: {}", comm.rank(), e.what()));
    throw;
  }
}

}  // namespace deepinfer
