// Ranks with a GPU each, through NCCL. Spans are the device's memory: a call goes into the rank's stream and
// returns at once, and is recorded where the stream is being captured.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include "comm/communicator.h"
#include "comm/nccl.h"

namespace deepinfer {

// What the ranks of one process know of each other, and NCCL's name for their group.
struct NcclGroup {
  NcclApi api;
  nccl::UniqueId id;
  int ranks = 0;

  std::atomic<bool> ended = false;
  std::mutex mutex;  // of what stands below
  std::string reason;
  std::vector<class NcclCommunicator*> members;  // [ranks] null: not there
};

// kUnavailable with NCCL's words.
Result<std::shared_ptr<NcclGroup>> make_nccl_group(const NcclApi& api, int ranks);

// The sums have the same bits on all ranks; the order in which they are added is NCCL's, and may depend on an
// element's place in the call where there are more than two ranks.
//
// A captured call runs whenever its graph is launched: all ranks must capture it, and launch it, alike. What
// a device waits for in vain holds it until leave().
class NcclCommunicator final : public Communicator {
 public:
  // Blocks until all ranks have called it, each in a thread of its own with its device current. The stream
  // outlives the communicator. kUnavailable.
  static Result<std::unique_ptr<NcclCommunicator>> join(std::shared_ptr<NcclGroup> group, int rank,
                                                        NcclApi::Stream stream);
  ~NcclCommunicator() override;  // graphs with calls of it are gone

  int rank() const override { return rank_; }
  int size() const override { return group_->ranks; }
  void all_reduce(std::span<float> values) override;
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override;
  void broadcast(std::span<std::byte> data, int root) override;
  void send(std::span<const std::byte> data, int to) override;
  void receive(std::span<std::byte> data, int from) override;
  void all_to_all(std::span<const std::byte> mine, std::span<std::byte> all) override;

  // Any thread. Calls of the host end; what already waits on a device does when its rank leaves.
  void abort(std::string reason) override;

  // CommError when the group has ended, or NCCL has noticed that it must. For those who wait for the device.
  void check();
  // What waits on this rank's device ends, and so does the group. While no other thread calls this rank.
  void leave();

 private:
  NcclCommunicator(std::shared_ptr<NcclGroup> group, int rank, NcclApi::Stream stream)
      : group_(std::move(group)), rank_(rank), stream_(stream) {}
  template <class Work>
  void call(const char* name, const Work& work);
  std::string text_of(nccl::Code code) const;
  [[noreturn]] void ended(const char* call) const;

  const std::shared_ptr<NcclGroup> group_;
  const int rank_;
  const NcclApi::Stream stream_;
  nccl::Comm* comm_ = nullptr;  // under the group's mutex; null: left
  bool inside_ = false;         // a call of NCCL is under way; under the same
};

}  // namespace deepinfer
