#include "emulation/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <boost/context/detail/fcontext.hpp>
#include <new>

#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define DI_EMULATION_ASAN 1
#else
#define DI_EMULATION_ASAN 0
#endif

namespace deepinfer::emulation {
namespace fcontext = boost::context::detail;

namespace {
constexpr size_t kStackBytes = 256 << 10;
}

// The first frame of a fiber.
struct FiberStart {
  static void begin(fcontext::transfer_t transfer) {
    // Who starts a fiber names it in next_ (see change()).
    Fiber* self = starting;
    self->arrive(transfer.fctx, transfer.data);
    self->entry_();
    __builtin_trap();  // entry() returned
  }
  static void prepare(Fiber& fiber) {
    void* top = static_cast<char*>(fiber.mapping_) + fiber.mapping_bytes_;
    fiber.context_ = fcontext::make_fcontext(top, fiber.stack_bytes_, begin);
    fiber.fake_stack_ = nullptr;
  }
  inline static Fiber* starting = nullptr;
};

Fiber::Fiber(void (*entry)()) : entry_(entry) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  mapping_bytes_ = kStackBytes + page;
  mapping_ = mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping_, page, PROT_NONE);
  stack_ = static_cast<char*>(mapping_) + page;
  stack_bytes_ = kStackBytes;
  FiberStart::prepare(*this);
}

Fiber::~Fiber() {
  if (!mapping_) return;
#if DI_EMULATION_ASAN
  __asan_unpoison_memory_region(stack_, stack_bytes_);
#endif
  munmap(mapping_, mapping_bytes_);
}

void Fiber::restart() {
#if DI_EMULATION_ASAN
  __asan_unpoison_memory_region(stack_, stack_bytes_);
#endif
  FiberStart::prepare(*this);
}

void Fiber::arrive(void* from_context, void* from) {
  auto* source = static_cast<Fiber*>(from);
#if DI_EMULATION_ASAN
  __sanitizer_finish_switch_fiber(fake_stack_, &source->stack_, &source->stack_bytes_);
#endif
  source->context_ = from_context;
}

void Fiber::change(Fiber& from, Fiber& to) {
#if DI_EMULATION_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.stack_, to.stack_bytes_);
#endif
  FiberStart::starting = &to;
  const fcontext::transfer_t back = fcontext::jump_fcontext(to.context_, &from);
  from.arrive(back.fctx, back.data);
}

}  // namespace deepinfer::emulation
