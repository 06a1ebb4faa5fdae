#include "base/check.h"
#include "ops/ops.h"
#include "quant/formats.h"

namespace deepinfer {

Result<LinearWeight> pack(Context& context, const LinearSource& source) {
  const QuantFormat* format = find_format(source.dtype);
  if (format == nullptr)
    return make_error(ErrorCode::kUnsupported, "a weight of dtype {} is not supported",
                      info(source.dtype).name);
  if (source.cols < 1 || source.cols % format->group != 0)
    return make_error(ErrorCode::kUnsupported,
                      "a weight of {} columns does not divide into groups of {} ({})", source.cols,
                      format->group, format->name);
  return ops::pack_linear(context, source);
}

}  // namespace deepinfer
