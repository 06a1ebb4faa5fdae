// One block of an emulated grid: its threads, warps, barriers and shared memory.
#pragma once

#include <array>
#include <exception>
#include <memory>
#include <vector>

#include "emulation/emulator.h"
#include "emulation/fiber.h"
#include "emulation/random.h"

namespace deepinfer::emulation {

enum class State : uint8_t { kReady, kBlockBarrier, kWarpCollective, kGridDependency, kExited };

struct AsyncCopy {
  void* shared;
  const void* source;
  bool copy;
};

// Copies of one thread in the order of their issue, and the ends of the committed groups among them.
struct AsyncCopies {
  std::vector<AsyncCopy> copies;
  std::vector<size_t> group_ends;
};

// Stores that other blocks do not see yet.
class LateStores {
 public:
  void add(void* to, const void* value, size_t size);
  void write();
  void take(LateStores& other);

 private:
  struct Store {
    void* to;
    size_t at, bytes;
  };
  std::vector<Store> stores_;
  std::vector<unsigned char> bytes_;
};

struct Thread : Coordinates {
  int rank = 0;  // in the block
  State state = State::kReady;
  Site site{"", 0};           // where it waits
  const char* waits_in = "";  // what for
  uint32_t mask = 0;          // of the collective it waits in
  AsyncCopies async;
  LateStores late;
};

// A collective that some lanes have come to.
struct Group {
  uint32_t mask, arrived;
  Collective collective;
  Site site;
};

struct Warp {
  uint32_t ready = 0, live = 0;
  std::array<void*, 32> args{};
  std::vector<Group> groups;
};

// What all blocks of a launch share.
struct GridState {
  KernelLaunch launch;
  Random random;
  bool dependency_done = true;
  LateStores late;  // of threads that have exited
};

// Runs on the thread that calls run(); the threads of the block on fibers of their own.
class Block {
 public:
  explicit Block(GridState& grid);
  ~Block();

  // Takes the block of this index; its threads are at their start.
  void begin(uint3 index);
  // Until all threads have exited (true) or all that have not wait for the grid's dependency (false).
  bool run();

  // What the running thread calls; see emulator.h.
  void sync(Site site, bool vote);
  int votes() const { return votes_of_last_; }
  void collective(const Collective& c, uint32_t mask, void* args, Site site);
  void copy_async(void* shared, const void* source, bool copy, Site site);
  void wait_async(size_t pending);
  void wait_for_grid();
  void pause();
  void check_shared(const void* data, size_t bytes, size_t align, const char* what, Site site) const;
  void* dynamic_shared() const { return dynamic_.get(); }
  void* static_shared(const void* declaration, size_t bytes);

  Thread& thread() { return *current_; }
  Warp& warp() { return warps_[current_->rank / 32]; }
  [[noreturn]] void fail(const std::string& what, Site site) const;

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  using Memory = std::unique_ptr<void, Free>;
  struct StaticShared {
    const void* declaration;
    size_t bytes;
    Memory memory;
  };

  static void fiber_main();
  static Memory shared_memory(size_t bytes, size_t align);
  void exit_thread();
  void complete(Warp& warp, size_t group);
  void set_ready(int warp, uint32_t lanes);
  Thread* pick();
  void block_current();  // the running thread waits: another one's turn
  void give_turn();      // the running thread stays ready
  void leave(Fiber& from);
  std::string waiting() const;

  GridState& grid_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<std::unique_ptr<Fiber>> fibers_;  // one a thread
  uint32_t ready_warps_ = 0;
  Thread* current_ = nullptr;
  size_t live_ = 0, at_barrier_ = 0;
  Site barrier_site_{"", 0};
  int votes_ = 0, votes_of_last_ = 0;
  Memory dynamic_;
  std::vector<StaticShared> static_;
  std::exception_ptr failure_;
};

// The block whose thread runs now, or null.
extern Block* current_block;

// The seed of one more random order.
uint64_t draw_seed();
std::string kernel_name(const void* function);
std::string to_text(const uint3& v);

}  // namespace deepinfer::emulation
