#include "emulation/emulator.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "emulation/block.h"
#include "emulation/emulated_gpu.h"
#include "emulation/grid.h"

#if __has_feature(address_sanitizer)
#include <sanitizer/common_interface_defs.h>
#endif

namespace deepinfer::emulation {

namespace {

struct Seeds {
  uint64_t seed = 1, drawn = 0;
  int failures = 0;
};

Seeds& seeds() {
  static Seeds s = [] {
    const char* set = std::getenv("DEEPINFER_EMULATION_SEED");
    return Seeds{.seed = set ? std::strtoull(set, nullptr, 10) : 1};
  }();
  return s;
}

Block& block() {
  if (!current_block) throw std::logic_error("a device function was called outside of a kernel");
  return *current_block;
}

}  // namespace

uint64_t seed() {
  return seeds().seed;
}

void set_seed(uint64_t seed) {
  seeds() = {.seed = seed, .drawn = 0, .failures = seeds().failures};
}

uint64_t draw_seed() {
  return seeds().seed * 1000003 + ++seeds().drawn;
}

int take_failures() {
  return std::exchange(seeds().failures, 0);
}

void throw_failure(const std::string& text) {
  ++seeds().failures;
  throw Failure(text + "; seed " + std::to_string(seed()) + " (DEEPINFER_EMULATION_SEED)");
}

void fill_poison(void* data, size_t bytes) {
  auto* p = static_cast<unsigned char*>(data);
  for (size_t i = 0; i + 1 < bytes; i += 2) std::memcpy(p + i, &kPoison, 2);
  if (bytes % 2) p[bytes - 1] = kPoison & 255;
}

std::string kernel_name(const void* function) {
#if __has_feature(address_sanitizer)
  char text[512] = "";
  // One byte in: the symbolizer takes an address for the one after a call.
  __sanitizer_symbolize_pc(static_cast<char*>(const_cast<void*>(function)) + 1, "%f", text, sizeof text);
  return text;
#else
  Dl_info info{};
  if (dladdr(function, &info) && info.dli_sname) return info.dli_sname;
  return "at " + std::to_string(reinterpret_cast<uintptr_t>(function));
#endif
}

std::string to_text(const uint3& v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

int lane() {
  return block().thread().rank % 32;
}

void sync_block(Site site) {
  block().sync(site, false);
}

int sync_block_count(bool vote, Site site) {
  Block& b = block();
  b.sync(site, vote);
  return b.votes();
}

void warp_collective(const Collective& collective, uint32_t mask, void* args, Site site) {
  block().collective(collective, mask, args, site);
}

uint32_t live_lanes() {
  return block().warp().live;
}

void* dynamic_shared() {
  return block().dynamic_shared();
}

void* static_shared_bytes(const void* declaration, size_t bytes) {
  return block().static_shared(declaration, bytes);
}

void check_shared(const void* data, size_t bytes, size_t align, const char* what, Site site) {
  block().check_shared(data, bytes, align, what, site);
}

void copy_async(void* shared, const void* source, bool copy, Site site) {
  block().copy_async(shared, source, copy, site);
}

void commit_async() {
  AsyncCopies& async = block().thread().async;
  async.group_ends.push_back(async.copies.size());
}

void wait_async(int pending) {
  block().wait_async(static_cast<size_t>(pending));
}

void store_late(void* to, const void* value, size_t bytes) {
  block().thread().late.add(to, value, bytes);
}

void fence() {
  block().thread().late.write();
  block().pause();
}

void LateStores::add(void* to, const void* value, size_t size) {
  fill_poison(to, size);
  stores_.push_back({to, bytes_.size(), size});
  const auto* from = static_cast<const unsigned char*>(value);
  bytes_.insert(bytes_.end(), from, from + size);
}

void LateStores::write() {
  for (const Store& s : stores_) std::memcpy(s.to, bytes_.data() + s.at, s.bytes);
  stores_.clear();
  bytes_.clear();
}

void LateStores::take(LateStores& other) {
  for (const Store& s : other.stores_) stores_.push_back({s.to, bytes_.size() + s.at, s.bytes});
  bytes_.insert(bytes_.end(), other.bytes_.begin(), other.bytes_.end());
  other.stores_.clear();
  other.bytes_.clear();
}

void grid_dependency_wait() {
  block().wait_for_grid();
}

void pause() {
  block().pause();
}

void fail_in_kernel(const std::string& what, Site site) {
  block().fail(what, site);
}

long long clock() {
  static long long ticks = 0;
  return ticks += 16;
}

Grid::Grid(KernelLaunch launch) : state_{std::move(launch), Random(draw_seed()), true} {
  const dim3 g = state_.launch.grid;
  order_.resize(static_cast<size_t>(g.x) * g.y * g.z);
  std::iota(order_.begin(), order_.end(), 0u);
  for (size_t i = order_.size(); i > 1; --i)
    std::swap(order_[i - 1], order_[state_.random.below(static_cast<uint32_t>(i))]);
}

uint3 Grid::index(size_t block) const {
  const dim3 g = state_.launch.grid;
  const uint32_t b = order_[block];
  return {b % g.x, b / g.x % g.y, b / (g.x * g.y)};
}

void Grid::start_before_dependency() {
  state_.dependency_done = false;
  constexpr size_t kMaxThreads = 2048;  // that stand on stacks at once
  const dim3 dim = state_.launch.block;
  const size_t most = std::min(order_.size(), std::max<size_t>(1, kMaxThreads / (dim.x * dim.y * dim.z)));
  const size_t count = 1 + state_.random.below(static_cast<uint32_t>(most));
  for (; next_ < count; ++next_) {
    auto block = std::make_unique<Block>(state_);
    block->begin(index(next_));
    if (!block->run()) suspended_.push_back(std::move(block));
  }
}

void Grid::run() {
  state_.dependency_done = true;
  for (auto& block : suspended_) block->run();
  suspended_.clear();
  if (next_ < order_.size()) {
    Block block(state_);
    for (; next_ < order_.size(); ++next_) {
      block.begin(index(next_));
      block.run();
    }
  }
  state_.late.write();
}

}  // namespace deepinfer::emulation
