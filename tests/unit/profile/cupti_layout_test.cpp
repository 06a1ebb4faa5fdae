// Our declarations of CUPTI beside its own header, where the toolkit is there. All of it is checked when this
// is compiled.
#include <cupti.h>
#include <gtest/gtest.h>

#include <type_traits>

#include "profile/cupti_api.h"

namespace deepinfer::cupti {
namespace {

static_assert(CUPTI_SUCCESS == kSuccess);
static_assert(CUPTI_ACTIVITY_KIND_MEMCPY == kMemcpy && CUPTI_ACTIVITY_KIND_MEMSET == kMemset);
static_assert(CUPTI_ACTIVITY_KIND_KERNEL == kKernel && CUPTI_ACTIVITY_KIND_RUNTIME == kRuntime);
static_assert(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL == kConcurrentKernel);
static_assert(CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION == kExternalCorrelation);
static_assert(CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM0 == kCustom0);
static_assert(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED == kFlushForced);
static_assert(CUPTI_ACTIVITY_MEMCPY_KIND_HTOD == 1 && CUPTI_ACTIVITY_MEMCPY_KIND_DTOH == 2 &&
              CUPTI_ACTIVITY_MEMCPY_KIND_DTOD == 8);

// The last field of each, and one in the middle: what is before them has the same size.
static_assert(offsetof(KernelActivity, start) == offsetof(CUpti_ActivityKernel10, start));
static_assert(offsetof(KernelActivity, stream) == offsetof(CUpti_ActivityKernel10, streamId));
static_assert(offsetof(KernelActivity, correlation) == offsetof(CUpti_ActivityKernel10, correlationId));
static_assert(offsetof(KernelActivity, name) == offsetof(CUpti_ActivityKernel10, name));
static_assert(offsetof(CopyActivity, copy_kind) == offsetof(CUpti_ActivityMemcpy6, copyKind));
static_assert(offsetof(CopyActivity, start) == offsetof(CUpti_ActivityMemcpy6, start));
static_assert(offsetof(CopyActivity, correlation) == offsetof(CUpti_ActivityMemcpy6, correlationId));
static_assert(offsetof(FillActivity, start) == offsetof(CUpti_ActivityMemset4, start));
static_assert(offsetof(FillActivity, correlation) == offsetof(CUpti_ActivityMemset4, correlationId));
static_assert(offsetof(ExternalActivity, external_id) ==
              offsetof(CUpti_ActivityExternalCorrelation, externalId));
static_assert(offsetof(ExternalActivity, correlation) ==
              offsetof(CUpti_ActivityExternalCorrelation, correlationId));

// A function of the header can be called through the pointer that we have for it: the same number of
// parameters, each of the same size, pointers for pointers.
template <class A, class B>
constexpr bool alike() {
  if constexpr (std::is_void_v<A> || std::is_void_v<B>)
    return std::is_void_v<A> && std::is_void_v<B>;
  else
    return sizeof(A) == sizeof(B) && std::is_pointer_v<A> == std::is_pointer_v<B>;
}
template <class R, class... A, class S, class... B>
constexpr bool callable(R (*)(A...), S (*)(B...)) {
  if constexpr (sizeof...(A) == sizeof...(B)) return (alike<R, S>() && ... && alike<A, B>());
  return false;
}
template <class Ours, class Theirs>
constexpr bool kCallable = callable(static_cast<Ours>(nullptr), static_cast<Theirs>(nullptr));

static_assert(kCallable<decltype(Functions::version), decltype(&cuptiGetVersion)>);
static_assert(kCallable<decltype(Functions::result_string), decltype(&cuptiGetResultString)>);
static_assert(kCallable<decltype(Functions::timestamp), decltype(&cuptiGetTimestamp)>);
static_assert(kCallable<decltype(Functions::register_callbacks), decltype(&cuptiActivityRegisterCallbacks)>);
static_assert(kCallable<decltype(Functions::enable), decltype(&cuptiActivityEnable)>);
static_assert(kCallable<decltype(Functions::disable), decltype(&cuptiActivityDisable)>);
static_assert(kCallable<decltype(Functions::flush), decltype(&cuptiActivityFlushAll)>);
static_assert(kCallable<decltype(Functions::next_record), decltype(&cuptiActivityGetNextRecord)>);
static_assert(kCallable<decltype(Functions::dropped_records), decltype(&cuptiActivityGetNumDroppedRecords)>);
static_assert(
    kCallable<decltype(Functions::push_external), decltype(&cuptiActivityPushExternalCorrelationId)>);
static_assert(kCallable<decltype(Functions::pop_external), decltype(&cuptiActivityPopExternalCorrelationId)>);
static_assert(kCallable<GiveBuffer*, CUpti_BuffersCallbackRequestFunc>);
static_assert(kCallable<TakeBuffer*, CUpti_BuffersCallbackCompleteFunc>);

TEST(CuptiLayout, IsThatOfTheHeader) {
  EXPECT_GE(CUPTI_API_VERSION, 18);
}

}  // namespace
}  // namespace deepinfer::cupti
