#include <vector>

#include "base/check.h"
#include "ops/ops.h"
#include "quant/codes.h"
#include "quant/formats.h"

namespace deepinfer {
namespace {

// The CPU packs from memory: the values stand there as long as it does.
Result<LinearWeight> pack_random(Context& context, LinearSource source) {
  std::vector<Buffer> made;
  for (LinearPart& part : source.parts) {
    if (!part.random) continue;
    const int64_t elems = part.rows * source.cols;
    DI_ASSIGN(Buffer rows, Buffer::allocate(static_cast<size_t>(elems) * 2));
    const RandomValues& values = *part.random;
    const int threads = context.pool->size();
    context.pool->run([&](int t) {
      const int64_t first = elems * t / threads, last = elems * (t + 1) / threads;
      write_random(values, first, last, rows.data() + first * 2);
    });
    part.data = rows.data();
    part.random.reset();
    made.push_back(std::move(rows));
  }
  return ops::pack_linear(context, source);
}

}  // namespace

Result<LinearWeight> pack(Context& context, const LinearSource& source) {
  if (has_codes(source.dtype)) {
    DI_TRY(check_codes(source));
    return ops::pack_linear(context, source);
  }
  const QuantFormat* format = find_format(source.dtype);
  if (format == nullptr)
    return make_error(ErrorCode::kUnsupported, "a weight of dtype {} is not supported",
                      info(source.dtype).name);
  if (source.cols < 1 || source.cols % format->group != 0)
    return make_error(ErrorCode::kUnsupported,
                      "a weight of {} columns does not divide into groups of {} ({})", source.cols,
                      format->group, format->name);
  bool random = false;
  for (const LinearPart& part : source.parts) random |= part.random.has_value();
  DI_CHECK(!random || source.dtype == DType::kBF16, "random values of {}, they are BF16", format->name);
  if (random && context.device.is_cpu()) return pack_random(context, source);
  return ops::pack_linear(context, source);
}

}  // namespace deepinfer
