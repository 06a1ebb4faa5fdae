#include "backend/cuda/pack_f8.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

#include "backend/cuda/f8.h"
#include "backend/cuda/pack_codes.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/staging.h"
#include "base/check.h"
#include "base/log.h"
#include "ops/pack_source.h"
#include "tensor/half.h"

namespace deepinfer::cuda {
namespace {

constexpr int64_t kMostCols = Staging::kSlotBytes / (4 * kTileRows);

Result<void> check(const LinearSource& s) {
  constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max() - 2 * kTileRows;
  DI_TRY(check_shape(s, {.cols = kMostCols, .rows = kMostRows}));
  if (s.scale_dtype != DType::kF16 && s.scale_dtype != DType::kBF16 && s.scale_dtype != DType::kF32)
    return make_error(ErrorCode::kUnsupported, "F8_E4M3 weight: got scales of {}, expected F16, BF16 or F32",
                      info(s.scale_dtype).name);
  if (s.group != s.cols && s.group != kF8Group)
    return make_error(
        ErrorCode::kUnsupported,
        "F8_E4M3 weight: got scales of {} columns each, CUDA has one a row or one for {} columns", s.group,
        kF8Group);
  if (!s.column_order.empty() || s.zero != 0)
    return make_error(ErrorCode::kUnsupported, "F8_E4M3 weight: got {}, expected none",
                      s.zero != 0 ? "a zero point" : "an order of columns");
  for (const LinearPart& part : s.parts)
    if (part.scale == nullptr || part.zero != nullptr)
      return make_error(ErrorCode::kUnsupported, "F8_E4M3 weight: got {}, expected codes and scales",
                        part.zero != nullptr ? "zero points" : "a part without scales");
  return {};
}

float scale_at(const LinearSource& s, const LinearPart& part, int64_t at) {
  const auto* scales = static_cast<const std::byte*>(part.scale);
  uint16_t bits = 0;
  float scale = 0;
  if (s.scale_dtype == DType::kF32) {
    std::memcpy(&scale, scales + at * 4, 4);  // the file's alignment is not the type's
    return scale;
  }
  std::memcpy(&bits, scales + at * 2, 2);
  return s.scale_dtype == DType::kF16 ? f16_to_float(bits) : bf16_to_float(bits);
}

// Whether one of the codes is 0x7f or 0xff. Kernels for cards without FP8 would read them as 480.
bool has_nan(const std::byte* codes, int64_t n) {
  constexpr uint64_t kLow7 = 0x7f7f7f7f7f7f7f7f, kOnes = 0x0101010101010101;
  uint64_t found = 0;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    uint64_t v;
    std::memcpy(&v, codes + i, 8);
    found |= ((v & kLow7) + kOnes) & ~kLow7;  // a carry into bit 7 where the seven below are ones
  }
  for (; i < n; ++i) found |= (std::to_integer<uint64_t>(codes[i]) & 0x7f) == 0x7f ? 0x80 : 0;
  return found != 0;
}

class Packer {
 public:
  Packer(const LinearSource& source, const PackedSize& size) : source_(source), find_(source), size_(size) {}

  // Codes of packed rows [first, first + n), and the scales of each group.
  Result<void> send(Context& context, std::byte* to) {
    Gpu& gpu = *context.gpu;
    Staging& staging = *gpu.parts().staging;
    const int64_t at_once = std::clamp<int64_t>(Staging::kSlotBytes / size_.cols, 1, size_.rows);
    for (int64_t first = 0; first < size_.rows; first += at_once) {
      const int64_t n = std::min(at_once, size_.rows - first);
      DI_ASSIGN(std::byte * slot, staging.next(gpu, n * size_.cols));
      share_work(context.pool, n, n * size_.cols, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) pack_row(first + i, slot + i * size_.cols);
      });
      gpu.copy_in(to + first * size_.cols, slot, n * size_.cols);
      staging.sent(gpu);
    }
    if (nan_row_ >= 0)
      return make_error(ErrorCode::kUnsupported,
                        "F8_E4M3 weight: row {} has a code that is not a number (0x7f or 0xff)",
                        nan_row_.load());
    return send_scales(gpu, to + size_.scales_at);
  }

 private:
  void pack_row(int64_t row, std::byte* out) {
    const RowFinder::Row at = find_(row);
    const int64_t cols = at.data == nullptr ? 0 : source_.cols;
    if (cols > 0) {
      std::memcpy(out, at.data, cols);
      if (has_nan(out, cols)) nan_row_ = at.row;
    }
    std::memset(out + cols, 0, size_.cols - cols);
  }

  Result<void> send_scales(Gpu& gpu, std::byte* to) {
    const int64_t at_once = std::min<int64_t>(size_.rows, Staging::kSlotBytes / sizeof(float));
    for (int64_t group = 0; group < source_.groups(); ++group) {
      for (int64_t first = 0; first < size_.rows; first += at_once) {
        const int64_t n = std::min(at_once, size_.rows - first);
        DI_ASSIGN(std::byte * slot, gpu.parts().staging->next(gpu, n * sizeof(float)));
        for (int64_t i = 0; i < n; ++i) {
          const RowFinder::Row at = find_(first + i);
          const float scale =
              at.part == nullptr ? 0.0f : scale_at(source_, *at.part, at.row * source_.groups() + group);
          std::memcpy(slot + i * sizeof(float), &scale, sizeof(float));
        }
        gpu.copy_in(to + (group * size_.rows + first) * sizeof(float), slot, n * sizeof(float));
        gpu.parts().staging->sent(gpu);
      }
    }
    return {};
  }

  const LinearSource& source_;
  RowFinder find_;
  PackedSize size_;
  std::atomic<int64_t> nan_row_ = -1;  // one of those, if there are some
};

}  // namespace

Result<LinearWeight> pack_f8(Context& context, const LinearSource& source) {
  DI_TRY(check(source));
  Gpu& gpu = *context.gpu;
  LinearWeight w = begin_weight(source, context.device);
  w.kernel = PackedForm{.layout = Layout::kF8}.number();
  const PackedSize size = packed_size({.layout = Layout::kF8}, w.rows, w.cols, w.order, w.group);
  Result<Buffer> packed = gpu.allocate(size.bytes);
  if (!packed)
    return make_error(packed.error().code, "{}, for a weight of {} [{}, {}]", packed.error().message,
                      info(source.dtype).name, w.rows, w.cols);
  w.packed = std::move(packed).value();
  want_staging(gpu);
  if (!gpu.parts().told_weight_only && !has_f8_products(gpu)) {
    gpu.parts().told_weight_only = true;
    log::info("GPU {} ({}): sm_{} multiplies no FP8: FP8 weights save memory there, products run in {}",
              gpu.facts().index, gpu.facts().name, gpu.facts().capability, info(context.activation).name);
  }
  const Result<void> sent = Packer(source, size).send(context, w.packed.data());
  if (!sent) {
    gpu.synchronize();  // copies into what is given back now
    return sent.error();
  }
  return w;
}

}  // namespace deepinfer::cuda
