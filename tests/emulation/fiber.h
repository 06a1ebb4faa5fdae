// A stack of its own with a guard page below it, and the switch between two of them, announced to ASan.
#pragma once

#include <cstddef>

namespace deepinfer::emulation {

class Fiber {
 public:
  // The one that runs already: the OS thread's own stack.
  Fiber() = default;
  // Runs entry(), which never returns, from the first switch on.
  explicit Fiber(void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Forgets what runs on the stack, without unwinding it; entry() starts anew at the next switch.
  void restart();

  // Leaves `from`, which is running, until somebody switches back to it.
  static void change(Fiber& from, Fiber& to);

 private:
  friend struct FiberStart;
  void arrive(void* from_context, void* from);

  void (*entry_)() = nullptr;
  void* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
  const void* stack_ = nullptr;
  size_t stack_bytes_ = 0;
  void* context_ = nullptr;
  void* fake_stack_ = nullptr;
};

}  // namespace deepinfer::emulation
