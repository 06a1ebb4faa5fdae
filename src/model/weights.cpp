#include "model/weights.h"

#include <algorithm>

#include "base/check.h"
#include "base/shown.h"

namespace deepinfer {

const RawTensor* Weights::find(const std::string& name) const {
  const auto it = tensors.find(name);
  return it == tensors.end() ? nullptr : &it->second;
}

Result<const RawTensor*> Weights::get(const std::string& name, std::vector<int64_t> shape) const {
  const RawTensor* t = find(name);
  if (t == nullptr) {
    if (const auto it = unsupported.find(name); it != unsupported.end())
      return make_error(ErrorCode::kModel, "{}: {}; expected F32, F16 or BF16", name, it->second);
    const std::string file = files.empty() ? std::string("the model") : files.front().path().string();
    return make_error(
        ErrorCode::kModel,
        "the weight {} is missing, expected shape [{}]; {} has {} weights: it is incomplete, or of "
        "another architecture",
        name, fmt::join(shape, ", "), file, tensors.size());
  }
  if (t->shape != shape)
    return make_error(ErrorCode::kModel,
                      "{}: the weight {} has the shape [{}], expected [{}] from the configuration", t->origin,
                      name, fmt::join(t->shape, ", "), fmt::join(shape, ", "));
  return t;
}

bool is_quantized_online(const Weights& weights, const std::string& name) {
  return !weights.online.empty() && name.find(".layers.") != std::string::npos;
}

void Weights::release_pages() const {
  for (const MappedFile& f : files) f.release_pages();
}

}  // namespace deepinfer
