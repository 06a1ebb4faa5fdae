#include "emulation/block.h"

#include <algorithm>
#include <cstdlib>

#include "emulation/emulated_gpu.h"

namespace deepinfer::emulation {

Block* current_block = nullptr;
const Coordinates* running = nullptr;

namespace {

// Stacks outlive blocks and launches: making one costs more than a small block.
std::vector<std::unique_ptr<Fiber>>& spare_fibers() {
  static std::vector<std::unique_ptr<Fiber>> spare;
  return spare;
}

Fiber& main_fiber() {
  static Fiber fiber;
  return fiber;
}

}  // namespace

Block::Memory Block::shared_memory(size_t bytes, size_t align) {
  void* p = nullptr;
  if (posix_memalign(&p, align, bytes)) throw std::bad_alloc();
  return Memory(p);
}

Block::Block(GridState& grid) : grid_(grid), dynamic_(shared_memory(grid.launch.smem, 128)) {
  const dim3 dim = grid.launch.block;
  threads_.resize(static_cast<size_t>(dim.x) * dim.y * dim.z);
  warps_.resize((threads_.size() + 31) / 32);
  auto& spare = spare_fibers();
  for (size_t i = 0; i < threads_.size(); ++i) {
    if (spare.empty()) spare.push_back(std::make_unique<Fiber>(fiber_main));
    fibers_.push_back(std::move(spare.back()));
    spare.pop_back();
    Thread& t = threads_[i];
    t.rank = static_cast<int>(i);
    const auto n = static_cast<unsigned>(i);
    t.thread_index = {n % dim.x, n / dim.x % dim.y, n / (dim.x * dim.y)};
    t.block_dim = dim;
    t.grid_dim = grid.launch.grid;
  }
}

Block::~Block() {
  // After a failure, threads stand anywhere on their stacks.
  if (live_)
    for (auto& fiber : fibers_) fiber->restart();
  auto& spare = spare_fibers();
  for (auto& fiber : fibers_) spare.push_back(std::move(fiber));
}

void Block::begin(uint3 index) {
  for (Thread& t : threads_) {
    t.block_index = index;
    t.state = State::kReady;
    t.async.copies.clear();
    t.async.group_ends.clear();
  }
  for (size_t w = 0; w < warps_.size(); ++w) {
    const size_t lanes = std::min<size_t>(32, threads_.size() - 32 * w);
    warps_[w].ready = warps_[w].live = lanes == 32 ? ~0u : (1u << lanes) - 1;
    warps_[w].groups.clear();
  }
  ready_warps_ = warps_.size() == 32 ? ~0u : (1u << warps_.size()) - 1;
  live_ = threads_.size();
  at_barrier_ = 0;
  votes_ = 0;
  fill_poison(dynamic_.get(), grid_.launch.smem);
  for (const StaticShared& s : static_) fill_poison(s.memory.get(), s.bytes);
}

bool Block::run() {
  for (Thread& t : threads_)
    if (t.state == State::kGridDependency && grid_.dependency_done) {
      t.state = State::kReady;
      set_ready(t.rank / 32, 1u << (t.rank % 32));
    }
  Block* outer = current_block;
  current_block = this;
  if (Thread* next = pick()) {
    current_ = next;
    running = next;
    Fiber::change(main_fiber(), *fibers_[next->rank]);
  }
  current_block = outer;
  running = nullptr;
  if (failure_) std::rethrow_exception(failure_);
  if (!live_) return true;
  for (const Thread& t : threads_)
    if (t.state == State::kGridDependency) return false;
  current_ =
      &*std::find_if(threads_.begin(), threads_.end(), [](auto& t) { return t.state != State::kExited; });
  fail("waits for ever." + waiting(), current_->site);
}

void Block::fiber_main() {
  for (;;) {
    Block& b = *current_block;
    const int rank = b.current_->rank;
    try {
      b.grid_.launch.body();
      b.exit_thread();
    } catch (...) {
      b.failure_ = std::current_exception();
    }
    b.leave(*b.fibers_[rank]);
  }
}

void Block::leave(Fiber& from) {
  Thread* next = failure_ ? nullptr : pick();
  if (next) {
    current_ = next;
    running = next;
  }
  Fiber::change(from, next ? *fibers_[next->rank] : main_fiber());
}

void Block::set_ready(int warp, uint32_t lanes) {
  if (!lanes) return;
  warps_[warp].ready |= lanes;
  ready_warps_ |= 1u << warp;
}

// Mostly the next lane of the same warp; now and then one of another warp.
Thread* Block::pick() {
  if (!ready_warps_) return nullptr;
  Random& random = grid_.random;
  int w = current_ ? current_->rank / 32 : 0;
  if (!warps_[w].ready || random.one_in(32)) w = random.pick(ready_warps_);
  const int lane = random.pick(warps_[w].ready);
  warps_[w].ready &= ~(1u << lane);
  if (!warps_[w].ready) ready_warps_ &= ~(1u << w);
  return &threads_[32 * w + lane];
}

void Block::block_current() {
  Thread* self = current_;
  leave(*fibers_[self->rank]);
  current_ = self;
  running = self;
}

void Block::give_turn() {
  set_ready(current_->rank / 32, 1u << (current_->rank % 32));
  Thread* self = current_;
  Thread* next = pick();
  if (next == self) return;
  current_ = next;
  running = next;
  Fiber::change(*fibers_[self->rank], *fibers_[next->rank]);
  current_ = self;
  running = self;
}

void Block::pause() {
  if (grid_.random.one_in(8)) give_turn();
}

void Block::sync(Site site, bool vote) {
  Thread& self = *current_;
  if (live_ != threads_.size()) {
    const auto exited =
        std::find_if(threads_.begin(), threads_.end(), [](auto& t) { return t.state == State::kExited; });
    fail("came to a block barrier after thread " + to_text(exited->thread_index) + " had exited", site);
  }
  if (at_barrier_ == 0) {
    barrier_site_ = site;
    votes_ = 0;
  } else if (!(barrier_site_ == site)) {
    fail("came to a block barrier while " + std::to_string(at_barrier_) + " threads wait at another one (" +
             barrier_site_.file + ":" + std::to_string(barrier_site_.line) + ")",
         site);
  }
  votes_ += vote;
  if (++at_barrier_ < threads_.size()) {
    self.state = State::kBlockBarrier;
    self.site = site;
    self.waits_in = "a block barrier";
    block_current();
    return;
  }
  at_barrier_ = 0;
  votes_of_last_ = votes_;
  for (Thread& t : threads_) t.state = State::kReady;
  for (size_t w = 0; w < warps_.size(); ++w) set_ready(static_cast<int>(w), warps_[w].live);
  warp().ready &= ~(1u << (self.rank % 32));
  if (!warp().ready) ready_warps_ &= ~(1u << (self.rank / 32));
  give_turn();
}

void Block::complete(Warp& warp, size_t index) {
  const Group group = warp.groups[index];
  warp.groups[index] = warp.groups.back();
  warp.groups.pop_back();
  group.collective.finish(warp.args.data(), group.arrived);
  const int w = static_cast<int>(&warp - warps_.data());
  for (uint32_t left = group.arrived; left; left &= left - 1)
    threads_[32 * w + std::countr_zero(left)].state = State::kReady;
  set_ready(w, group.arrived);
}

void Block::collective(const Collective& c, uint32_t mask, void* args, Site site) {
  Thread& self = *current_;
  Warp& w = warp();
  const uint32_t bit = 1u << (self.rank % 32);
  if (!(mask & bit)) fail(std::string(c.name) + ": the lane is not in its own mask", site);
  if (c.whole_warp && (mask & w.live) != ~0u)
    fail(std::string(c.name) + " needs all 32 lanes of the warp: some have exited or never were", site);
  size_t i = 0;
  while (i < w.groups.size() && w.groups[i].mask != mask) ++i;
  if (i == w.groups.size()) {
    w.groups.push_back({mask, 0, c, site});
  } else if (Group& g = w.groups[i]; std::strcmp(g.collective.name, c.name) || !(g.site == site)) {
    fail(std::string("came to ") + c.name + " while other lanes of its mask are in " + g.collective.name +
             " (" + g.site.file + ":" + std::to_string(g.site.line) + ")",
         site);
  }
  Group& group = w.groups[i];
  group.arrived |= bit;
  w.args[self.rank % 32] = args;
  if (mask & w.live & ~group.arrived) {
    self.state = State::kWarpCollective;
    self.site = site;
    self.waits_in = c.name;
    self.mask = mask;
    block_current();
    return;
  }
  complete(w, i);
  w.ready &= ~bit;
  if (!w.ready) ready_warps_ &= ~(1u << (self.rank / 32));
  pause();
}

void Block::exit_thread() {
  Thread& self = *current_;
  Warp& w = warp();
  self.state = State::kExited;
  grid_.late.take(self.late);
  --live_;
  w.live &= ~(1u << (self.rank % 32));
  if (at_barrier_)
    fail("exited while " + std::to_string(at_barrier_) + " threads wait at a block barrier", barrier_site_);
  for (size_t i = 0; i < w.groups.size();) {
    const Group& g = w.groups[i];
    const bool named = g.mask >> (self.rank % 32) & 1;
    if (named && g.collective.whole_warp)
      fail(std::string("exited while other lanes of its warp wait in ") + g.collective.name, g.site);
    if (named && !(g.mask & w.live & ~g.arrived))
      complete(w, i);
    else
      ++i;
  }
}

void Block::wait_for_grid() {
  if (grid_.dependency_done) return;
  current_->state = State::kGridDependency;
  block_current();
}

void* Block::static_shared(const void* declaration, size_t bytes) {
  for (const StaticShared& s : static_)
    if (s.declaration == declaration) return s.memory.get();
  static_.push_back({declaration, bytes, shared_memory(bytes, 16)});
  size_t total = 0;
  for (const StaticShared& s : static_) total += s.bytes;
  if (total > (48 << 10))
    fail("uses " + std::to_string(total) + " bytes of static shared memory, 49152 at most", {"", 0});
  fill_poison(static_.back().memory.get(), bytes);
  return static_.back().memory.get();
}

void Block::check_shared(const void* data, size_t bytes, size_t align, const char* what, Site site) const {
  const auto at = reinterpret_cast<uintptr_t>(data);
  const auto inside = [&](const void* start, size_t size) {
    const auto from = reinterpret_cast<uintptr_t>(start);
    return at >= from && at - from <= size && size - (at - from) >= bytes;
  };
  bool found = inside(dynamic_.get(), grid_.launch.smem);
  for (const StaticShared& s : static_) found = found || inside(s.memory.get(), s.bytes);
  if (!found)
    fail(std::string(what) + ": " + std::to_string(bytes) + " bytes that are not the block's shared memory",
         site);
  if (at % align)
    fail(std::string(what) + ": the address is not a multiple of " + std::to_string(align), site);
}

void Block::copy_async(void* shared, const void* source, bool copy, Site site) {
  check_shared(shared, 16, 16, "cp_async_16", site);
  if (copy && reinterpret_cast<uintptr_t>(source) % 16)
    fail("cp_async_16: the source's address is not a multiple of 16", site);
  fill_poison(shared, 16);
  current_->async.copies.push_back({shared, source, copy});
}

void Block::wait_async(size_t pending) {
  AsyncCopies& async = current_->async;
  if (async.group_ends.size() <= pending) return;
  const size_t groups = async.group_ends.size() - pending, end = async.group_ends[groups - 1];
  for (size_t i = 0; i < end; ++i) {
    const AsyncCopy& c = async.copies[i];
    if (c.copy)
      std::memcpy(c.shared, c.source, 16);
    else
      std::memset(c.shared, 0, 16);
  }
  async.copies.erase(async.copies.begin(), async.copies.begin() + static_cast<ptrdiff_t>(end));
  async.group_ends.erase(async.group_ends.begin(), async.group_ends.begin() + static_cast<ptrdiff_t>(groups));
  for (size_t& group_end : async.group_ends) group_end -= end;
}

void Block::fail(const std::string& what, Site site) const {
  std::string text = "kernel " + kernel_name(grid_.launch.function);
  if (current_)
    text += ", block " + to_text(current_->block_index) + ", thread " + to_text(current_->thread_index);
  text += " " + what;
  if (site.line) text += " (" + std::string(site.file) + ":" + std::to_string(site.line) + ")";
  throw_failure(text);
}

// Each place where threads wait, with the first thread and the number of them.
std::string Block::waiting() const {
  struct Place {
    const Thread* first;
    size_t count;
  };
  std::vector<Place> places;
  size_t exited = 0;
  for (const Thread& t : threads_) {
    if (t.state == State::kExited) {
      ++exited;
      continue;
    }
    const auto same = [&](const Place& p) {
      return p.first->site == t.site && p.first->state == t.state && p.first->rank / 32 == t.rank / 32 &&
             p.first->mask == t.mask;
    };
    const auto found = std::find_if(places.begin(), places.end(), same);
    if (found == places.end())
      places.push_back({&t, 1});
    else
      ++found->count;
  }
  std::string text = " " + std::to_string(exited) + " threads of the block have exited";
  for (const Place& p : places)
    text += "; " + std::to_string(p.count) + " of warp " + std::to_string(p.first->rank / 32) +
            " from thread " + to_text(p.first->thread_index) + " on wait in " + p.first->waits_in + " (" +
            p.first->site.file + ":" + std::to_string(p.first->site.line) + ")";
  return text;
}

}  // namespace deepinfer::emulation
