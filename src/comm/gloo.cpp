#include "comm/gloo.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "base/check.h"
#include "comm/gloo_context.h"
#include "comm/sum.h"

namespace deepinfer {
namespace {

using Clock = std::chrono::steady_clock;
using GlooBuffer = ::gloo::transport::UnboundBuffer;

constexpr auto kLinger = std::chrono::seconds(2);  // of a rank that has finished, for those that have not
constexpr auto kNews =
    std::chrono::milliseconds(500);  // a lost connection's reason comes on the mesh meanwhile
constexpr auto kTell = std::chrono::milliseconds(500);  // to tell a peer the reason
constexpr std::chrono::milliseconds kConnect{10000};    // the least time to connect all ranks
constexpr size_t kInlineBytes = size_t{16} << 10;       // sent along with a frame's head
constexpr size_t kWholeSums = size_t{64} << 10;  // an all-reduce reads at most so much from all in one go

enum class Op : uint32_t { kAllReduce, kSlices, kAllGather, kBroadcast, kAllToAll, kMessage };
constexpr std::array<const char*, 6> kNames = {"all_reduce", "all_reduce", "all_gather",
                                               "broadcast",  "all_to_all", "a message"};
enum Slot : uint64_t { kCollective, kCollectiveBulk, kMessages, kMessagesBulk };

// Gloo ends the process when more arrives than a receiver asked for. So heads of a fixed size go first, and
// what they announce is asked for once it is known to be what this rank expects.
struct Head {
  uint64_t call = 0;   // frames before this one in its lane
  uint64_t total = 0;  // bytes of the whole call
  uint64_t bytes = 0;  // from this rank to that one
  Op op{};
  int32_t root = -1;

  std::string text() const {
    const size_t name = static_cast<size_t>(op);
    const std::string of =
        fmt::format("{} of {} bytes", name < kNames.size() ? kNames[name] : "nonsense", total);
    return root < 0 ? of : fmt::format("{} from rank {}", of, root);
  }
};
constexpr size_t kFrameBytes = sizeof(Head) + kInlineBytes;

// Memory that Gloo reads or writes, and whether it may still do so.
struct Pending {
  std::vector<std::byte> bytes;
  std::unique_ptr<GlooBuffer> buffer;
  bool busy = false;
};

// Frames between this rank and another, in order: two on their way at a time in each direction. Receives are
// posted ahead, so a frame costs one trip.
struct Lane {
  std::array<Pending, 2> out, bulk, in;
  uint64_t sent = 0, taken = 0;
};

// Gloo writes to connections that the other side may have closed, without saying that no signal is wanted.
class NoPipeSignal {
 public:
  NoPipeSignal() {
    sigemptyset(&pipe_);
    sigaddset(&pipe_, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }
  ~NoPipeSignal() {
    if (sigismember(&before_, SIGPIPE) == 1) return;
    const timespec now{};
    while (sigtimedwait(&pipe_, nullptr, &now) > 0) {
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  NoPipeSignal(const NoPipeSignal&) = delete;

 private:
  sigset_t pipe_, before_;
};

class GlooCommunicator final : public Communicator {
 public:
  GlooCommunicator(Mesh mesh, std::shared_ptr<::gloo::transport::Context> context,
                   std::chrono::milliseconds timeout);
  ~GlooCommunicator() override;

  int rank() const override { return mesh_.rank; }
  int size() const override { return mesh_.size; }
  void abort(std::string reason) override { end(std::move(reason), true); }

  void all_reduce(std::span<float> values) override;
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override;
  void broadcast(std::span<std::byte> data, int root) override;
  void all_to_all(std::span<const std::byte> mine, std::span<std::byte> all) override;
  void send(std::span<const std::byte> data, int to) override { send_up_to(kEagerBytes, data, to); }
  void send_copy(std::span<const std::byte> data, int to) override { send_up_to(data.size(), data, to); }
  void receive(std::span<std::byte> data, int from) override;

 private:
  struct Left {
    uint64_t collectives = 0, messages = 0;  // frames that the peer sent before it finished
  };
  struct Wait {
    GlooBuffer* buffer = nullptr;
    bool receive = false;
    int peer = -1;
    uint64_t frames = 0;  // of the peer's lane that it needs
    bool message = false;
  };
  using Out = std::function<std::span<const std::byte>(int)>;
  using In = std::function<std::span<std::byte>(int)>;

  void send_up_to(size_t eager, std::span<const std::byte> data, int to);
  [[noreturn]] void fail(const char* call, std::string reason);
  void check(bool good, const char* call, const char* what, size_t got, size_t expected);
  void refuse_if_ended(const char* call);
  bool end(std::string reason, bool tell);
  void watch();
  void hear(int peer);
  bool lost(const Wait& wait) const;  // with mutex_ held
  void wait(const Wait& wait, const char* call);
  void start(Lane& lane, int peer, Slot slot);
  void post(Lane& lane, int peer, Slot slot, const Head& head, std::span<const std::byte> data);
  Head take(Lane& lane, int peer, bool message, const char* call);
  void done(Lane& lane, int peer, Slot slot, const char* call);
  void exchange(Head head, const Out& out, const In& in);
  template <class Function>
  void guarded(const char* call, int peer, const Function& function);

  Mesh mesh_;
  const std::shared_ptr<::gloo::transport::Context> context_;
  const std::chrono::milliseconds timeout_;
  std::vector<Lane> collective_, messages_;
  std::vector<float> staging_;

  mutable std::mutex mutex_;  // of the four below; never held while Gloo is called but to end a wait
  std::condition_variable news_;
  bool ended_ = false;
  std::string reason_;
  std::vector<std::optional<Left>> left_;
  Wait waiting_;

  std::mutex link_mutex_;  // writing to the mesh's links
  comm::Fd stop_;
  std::thread watcher_;
};

GlooCommunicator::GlooCommunicator(Mesh mesh, std::shared_ptr<::gloo::transport::Context> context,
                                   std::chrono::milliseconds timeout)
    : mesh_(std::move(mesh)),
      context_(std::move(context)),
      timeout_(timeout),
      collective_(mesh_.size),
      messages_(mesh_.size),
      left_(mesh_.size),
      stop_(eventfd(0, EFD_CLOEXEC)) {
  for (int r = 0; r < mesh_.size; ++r) {
    if (r == mesh_.rank) continue;
    start(collective_[r], r, kCollective);
    start(messages_[r], r, kMessages);
  }
  watcher_ = std::thread([this] { watch(); });
}

GlooCommunicator::~GlooCommunicator() {
  const auto deadline = Clock::now() + kLinger;
  for (int r = 0; r < mesh_.size; ++r) {
    if (r == mesh_.rank) continue;
    const std::lock_guard lock(link_mutex_);
    const std::string bye = fmt::format("bye {} {}", collective_[r].sent, messages_[r].sent);
    (void)mesh_.links[r].write(bye, Clock::now() + kTell).ok();  // who is gone needs no goodbye
  }
  {
    std::unique_lock lock(mutex_);
    news_.wait_until(lock, deadline, [&] {
      for (int r = 0; r < mesh_.size; ++r)
        if (r != mesh_.rank && !left_[r] && !ended_) return false;
      return true;
    });
  }
  const uint64_t one = 1;
  (void)!::write(stop_.get(), &one, sizeof one);
  watcher_.join();
}

bool GlooCommunicator::end(std::string reason, bool tell) {
  {
    const std::lock_guard lock(mutex_);
    if (ended_) return false;
    ended_ = true;
    reason_ = reason;
    if (waiting_.buffer)
      waiting_.receive ? waiting_.buffer->abortWaitRecv() : waiting_.buffer->abortWaitSend();
    news_.notify_all();
  }
  if (!tell) return true;
  const std::lock_guard lock(link_mutex_);
  reason.resize(std::min(reason.size(), comm::Link::kMostBytes / 2));
  for (comm::Link& link : mesh_.links)
    if (link) (void)link.write("abort " + reason, Clock::now() + kTell).ok();  // it may be what is gone
  return true;
}

void GlooCommunicator::fail(const char* call, std::string reason) {
  if (!end(fmt::format("rank {}: {}: {}", mesh_.rank, call, reason), true)) {
    const std::lock_guard lock(mutex_);
    reason = "the group has ended: " + reason_;
  }
  throw CommError(mesh_.rank, mesh_.size, call, std::move(reason));
}

void GlooCommunicator::refuse_if_ended(const char* call) {
  std::unique_lock lock(mutex_);
  if (!ended_) return;
  lock.unlock();
  fail(call, "");
}

void GlooCommunicator::check(bool good, const char* call, const char* what, size_t got, size_t expected) {
  if (!good) fail(call, fmt::format("{}: got {}, expected {}", what, got, expected));
}

// Of the thread watcher_: what peers tell, and when they are gone.
void GlooCommunicator::watch() {
  std::vector<pollfd> fds{{.fd = stop_.get(), .events = POLLIN, .revents = 0}};
  for (const comm::Link& link : mesh_.links) fds.push_back({.fd = link.fd(), .events = POLLIN, .revents = 0});
  for (;;) {
    if (poll(fds.data(), fds.size(), -1) < 0) continue;  // interrupted
    if (fds[0].revents) return;
    for (int r = 0; r < mesh_.size; ++r) {
      if (!fds[r + 1].revents) continue;
      hear(r);
      const std::lock_guard lock(mutex_);
      if (left_[r] || ended_) fds[r + 1].fd = -1;  // its last word
    }
  }
}

void GlooCommunicator::hear(int peer) {
  auto text = mesh_.links[peer].read(Clock::now() + kNews);
  if (!text) {
    end(fmt::format("rank {} is gone: {}", peer, text.error().message), true);
    return;
  }
  unsigned long long collectives = 0, messages = 0;
  if (text->starts_with("abort ")) {
    end(text->substr(6), false);
  } else if (std::sscanf(text->c_str(), "bye %llu %llu", &collectives, &messages) == 2) {
    const std::lock_guard lock(mutex_);
    left_[peer] = Left{collectives, messages};
    if (waiting_.buffer && lost(waiting_))
      waiting_.receive ? waiting_.buffer->abortWaitRecv() : waiting_.buffer->abortWaitSend();
    news_.notify_all();
  } else {
    end(fmt::format("rank {} sent something unknown", peer), true);
  }
}

bool GlooCommunicator::lost(const Wait& w) const {
  const std::optional<Left>& left = left_[w.peer];
  return left && w.frames > (w.message ? left->messages : left->collectives);
}

// Gloo throws what its connections report; the reason is clearer on the mesh, when it has come.
template <class Function>
void GlooCommunicator::guarded(const char* call, int peer, const Function& function) {
  const auto start = Clock::now();
  std::string problem;
  try {
    const NoPipeSignal none;
    function();
    return;
  } catch (const CommError&) {
    throw;
  } catch (const std::exception& e) {
    problem = e.what();
  }
  if (Clock::now() - start >= timeout_)
    fail(call, fmt::format("rank {} did not come within {} ms", peer, timeout_.count()));
  {
    std::unique_lock lock(mutex_);
    news_.wait_for(lock, kNews, [&] { return ended_; });
  }
  fail(call, fmt::format("the connection to rank {} is lost: {}", peer, problem));
}

void GlooCommunicator::wait(const Wait& w, const char* call) {
  bool is_lost = false;
  {
    const std::lock_guard lock(mutex_);
    is_lost = lost(w);
    if (!ended_ && !is_lost) waiting_ = w;
  }
  bool reached = false;
  if (waiting_.buffer) {
    const auto stop_waiting = [&] {
      const std::lock_guard lock(mutex_);
      waiting_ = {};
    };
    try {
      guarded(call, w.peer,
              [&] { reached = w.receive ? w.buffer->waitRecv(timeout_) : w.buffer->waitSend(timeout_); });
    } catch (...) {
      stop_waiting();
      throw;
    }
    stop_waiting();
  }
  if (!reached) fail(call, fmt::format("rank {} is gone", w.peer));
}

void GlooCommunicator::start(Lane& lane, int peer, Slot slot) {
  for (size_t i = 0; i < 2; ++i) {
    for (Pending* p : {&lane.out[i], &lane.in[i]}) {
      p->bytes.resize(kFrameBytes);
      p->buffer = context_->createUnboundBuffer(p->bytes.data(), p->bytes.size());
    }
    lane.in[i].buffer->recv(peer, slot);
  }
}

void GlooCommunicator::post(Lane& lane, int peer, Slot slot, const Head& head,
                            std::span<const std::byte> data) {
  const char* call = slot == kMessages ? "send" : kNames[static_cast<size_t>(head.op)];
  Pending& out = lane.out[lane.sent % 2];
  const Wait w{
      .buffer = out.buffer.get(), .receive = false, .peer = peer, .frames = 0, .message = slot == kMessages};
  if (out.busy) wait(w, call);
  std::memcpy(out.bytes.data(), &head, sizeof head);
  const size_t along = head.bytes <= kInlineBytes ? head.bytes : 0;
  if (along) std::memcpy(out.bytes.data() + sizeof head, data.data(), along);
  guarded(call, peer, [&] { out.buffer->send(peer, slot, 0, sizeof head + along); });
  out.busy = true;
  ++lane.sent;
}

Head GlooCommunicator::take(Lane& lane, int peer, bool message, const char* call) {
  Pending& in = lane.in[lane.taken % 2];
  wait({.buffer = in.buffer.get(),
        .receive = true,
        .peer = peer,
        .frames = lane.taken + 1,
        .message = message},
       call);
  Head head;
  std::memcpy(&head, in.bytes.data(), sizeof head);
  if (head.call != lane.taken)
    fail(call, fmt::format("rank {} sent frame {}, expected frame {}", peer, head.call, lane.taken));
  return head;
}

void GlooCommunicator::done(Lane& lane, int peer, Slot slot, const char* call) {
  guarded(call, peer, [&] { lane.in[lane.taken % 2].buffer->recv(peer, slot); });
  ++lane.taken;
}

// Every rank sends out(r) to each rank r and gets in(r) from it. Nothing of a peer is believed that is not
// what this rank expects of the call.
void GlooCommunicator::exchange(Head head, const Out& out, const In& in) {
  const char* call = kNames[static_cast<size_t>(head.op)];
  refuse_if_ended(call);
  struct Bulk {
    std::unique_ptr<GlooBuffer> buffer;
    bool receive;
    int peer;
  };
  std::vector<Bulk> bulks;
  for (int r = 0; r < mesh_.size; ++r) {
    if (r == mesh_.rank) continue;
    head.call = collective_[r].sent;
    head.bytes = out(r).size();
    post(collective_[r], r, kCollective, head, out(r));
  }
  for (int r = 0; r < mesh_.size; ++r) {
    if (r == mesh_.rank) continue;
    Lane& lane = collective_[r];
    const Head theirs = take(lane, r, false, call);
    const std::span<std::byte> to = in(r);
    if (theirs.op != head.op || theirs.root != head.root || theirs.total != head.total ||
        theirs.bytes != to.size())
      fail(call, fmt::format("rank {} calls {}, this one {}", r, theirs.text(), head.text()));
    if (to.size() > kInlineBytes) {
      bulks.push_back({context_->createUnboundBuffer(to.data(), to.size()), true, r});
      guarded(call, r, [&] { bulks.back().buffer->recv(r, kCollectiveBulk); });
    } else if (!to.empty()) {
      std::memcpy(to.data(), lane.in[lane.taken % 2].bytes.data() + sizeof(Head), to.size());
    }
    done(lane, r, kCollective, call);
  }
  for (int r = 0; r < mesh_.size; ++r) {
    if (r == mesh_.rank || out(r).size() <= kInlineBytes) continue;
    bulks.push_back(
        {context_->createUnboundBuffer(const_cast<std::byte*>(out(r).data()), out(r).size()), false, r});
    guarded(call, r, [&] { bulks.back().buffer->send(r, kCollectiveBulk); });
  }
  for (const Bulk& b : bulks)
    wait({.buffer = b.buffer.get(), .receive = b.receive, .peer = b.peer, .frames = 0, .message = false},
         call);
}

void GlooCommunicator::all_reduce(std::span<float> values) {
  const size_t n = values.size(), ranks = mesh_.size, me = mesh_.rank;
  const std::span<std::byte> bytes = std::as_writable_bytes(values);
  const bool whole = bytes.size() <= kInlineBytes && bytes.size() * (ranks - 1) <= kWholeSums;
  const auto begin = [&](size_t r) { return whole ? 0 : n * r / ranks; };
  const auto end = [&](size_t r) { return whole ? n : n * (r + 1) / ranks; };
  const auto slice = [&](size_t r) {
    return bytes.subspan(begin(r) * sizeof(float), (end(r) - begin(r)) * sizeof(float));
  };
  const size_t own = end(me) - begin(me);
  if (staging_.size() < own * ranks) staging_.resize(own * ranks);
  const auto staged = [&](size_t r) { return std::span(staging_).subspan(r * own, own); };
  exchange(
      {.total = bytes.size(), .op = Op::kAllReduce}, [&](int r) { return slice(r); },
      [&](int r) { return std::as_writable_bytes(staged(r)); });
  std::vector<const float*> parts(ranks);
  float* sum = values.data() + begin(me);
  for (size_t r = 0; r < ranks; ++r) parts[r] = r == me ? sum : staged(r).data();
  sum_in_order(parts, {&sum, 1}, 0, own);
  if (whole) return;
  exchange(
      {.total = bytes.size(), .op = Op::kSlices}, [&](int) { return slice(me); },
      [&](int r) { return slice(r); });
}

void GlooCommunicator::all_gather(std::span<const std::byte> mine, std::span<std::byte> all) {
  const size_t n = mine.size();
  check(all.size() == n * mesh_.size, "all_gather", "bytes of `all`", all.size(), n * mesh_.size);
  std::byte* place = all.data() + n * mesh_.rank;
  if (n && place != mine.data()) std::memcpy(place, mine.data(), n);
  exchange(
      {.total = n, .op = Op::kAllGather}, [&](int) { return mine; },
      [&](int r) { return all.subspan(n * r, n); });
}

void GlooCommunicator::broadcast(std::span<std::byte> data, int root) {
  check(root >= 0 && root < mesh_.size, "broadcast", "root", static_cast<size_t>(root), mesh_.size - 1);
  exchange(
      {.total = data.size(), .op = Op::kBroadcast, .root = root},
      [&](int) { return data.first(mesh_.rank == root ? data.size() : 0); },
      [&](int r) { return data.first(r == root ? data.size() : 0); });
}

void GlooCommunicator::all_to_all(std::span<const std::byte> mine, std::span<std::byte> all) {
  const size_t n = mine.size() / mesh_.size;
  check(n * mesh_.size == mine.size(), "all_to_all", "bytes of `mine`", mine.size(), n * mesh_.size);
  check(all.size() == mine.size(), "all_to_all", "bytes of `all`", all.size(), mine.size());
  if (n) std::memcpy(all.data() + n * mesh_.rank, mine.data() + n * mesh_.rank, n);
  exchange(
      {.total = mine.size(), .op = Op::kAllToAll}, [&](int r) { return mine.subspan(n * r, n); },
      [&](int r) { return all.subspan(n * r, n); });
}

// A message of at most `eager` bytes is copied.
void GlooCommunicator::send_up_to(size_t eager, std::span<const std::byte> data, int to) {
  if (to < 0 || to >= mesh_.size || to == mesh_.rank)
    fail("send", fmt::format("got rank {}, expected another one of 0 to {}", to, mesh_.size - 1));
  refuse_if_ended("send");
  Lane& lane = messages_[to];
  Pending& bulk = lane.bulk[lane.sent % 2];
  const auto sent = [&] {
    wait({.buffer = bulk.buffer.get(), .receive = false, .peer = to, .frames = 0, .message = true}, "send");
    bulk.busy = false;
  };
  if (bulk.busy) sent();
  post(lane, to, kMessages,
       {.call = lane.sent, .total = data.size(), .bytes = data.size(), .op = Op::kMessage}, data);
  if (data.size() <= kInlineBytes) return;
  std::byte* from = const_cast<std::byte*>(data.data());
  if (data.size() <= eager) {
    bulk.bytes.assign(data.begin(), data.end());
    from = bulk.bytes.data();
  }
  bulk.buffer = context_->createUnboundBuffer(from, data.size());
  guarded("send", to, [&] { bulk.buffer->send(to, kMessagesBulk); });
  bulk.busy = true;
  if (data.size() > eager) sent();
}

void GlooCommunicator::receive(std::span<std::byte> data, int from) {
  if (from < 0 || from >= mesh_.size || from == mesh_.rank)
    fail("receive", fmt::format("got rank {}, expected another one of 0 to {}", from, mesh_.size - 1));
  refuse_if_ended("receive");
  Lane& lane = messages_[from];
  const Head head = take(lane, from, true, "receive");
  if (head.op != Op::kMessage || head.bytes != data.size() || head.total != data.size())
    fail("receive",
         fmt::format("rank {} sends {} bytes, this one expects {}", from, head.bytes, data.size()));
  if (data.size() <= kInlineBytes) {
    if (!data.empty())
      std::memcpy(data.data(), lane.in[lane.taken % 2].bytes.data() + sizeof head, data.size());
  } else {
    const auto buffer = context_->createUnboundBuffer(data.data(), data.size());
    guarded("receive", from, [&] { buffer->recv(from, kMessagesBulk); });
    wait({.buffer = buffer.get(), .receive = true, .peer = from, .frames = lane.taken + 1, .message = true},
         "receive");
  }
  done(lane, from, kMessages, "receive");
}

}  // namespace

bool has_gloo() {
  return true;
}

Result<std::unique_ptr<Communicator>> gloo_communicator(Mesh mesh, std::chrono::milliseconds timeout) {
  DI_CHECK(timeout.count() > 0, "a group that waits {} ms", timeout.count());
  const NoPipeSignal none;  // Gloo's own thread, which starts here, takes this over
  DI_ASSIGN(auto context, comm::connect_gloo(mesh, std::max(timeout, kConnect)));
  try {
    return std::unique_ptr<Communicator>(
        std::make_unique<GlooCommunicator>(std::move(mesh), std::move(context), timeout));
  } catch (const std::exception& e) {
    return make_error(ErrorCode::kUnavailable, "Gloo: a rank was lost again: {}", e.what());
  }
}

}  // namespace deepinfer
