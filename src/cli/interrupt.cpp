#include "cli/interrupt.h"

#include <atomic>
#include <csignal>

namespace deepinfer {
namespace {

// What a signal handler can reach.
std::atomic<bool> arrived{false};
static_assert(std::atomic<bool>::is_always_lock_free);

void on_signal(int) {
  arrived = true;
}

}  // namespace

void catch_interrupts() {
  std::signal(SIGXFSZ, SIG_IGN);
  struct sigaction action{};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESETHAND;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool interrupted() {
  return arrived;
}

}  // namespace deepinfer
