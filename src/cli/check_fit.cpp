#include "cli/check_fit.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/check.h"
#include "cli/estimate_model.h"
#include "device/tuning.h"
#include "engine/find_device.h"
#include "engine/split.h"
#include "model/quantization.h"

namespace deepinfer {

Result<void> check_fit(const Config& config, std::span<const GpuInfo> gpus) {
  const int tensor = std::max(config.gpu.tensor_parallel_size, 1);
  const int stages = std::max(config.gpu.pipeline_parallel_size, 1);
  if (gpus.empty() || !gpus.front().total_bytes) return {};
  Result<DescribedModel> model = describe_model(config);
  if (!model) return {};
  Checkpoint& checkpoint = model->checkpoint;
  if (!set_quantization(checkpoint, config.model.quantization, preferred_weights(config.gpu, gpus.front())))
    return {};
  const EstimateTarget target{.gpu = smallest_card(gpus), .count = tensor, .stages = stages};
  const Result<Estimate> e = estimate(config, checkpoint, target);
  if (!e || e->fits() || e->weight_bytes < e->usable_bytes) return {};
  std::string text = fmt::format("{}: {}", config.model.name, e->problem);
  const std::vector<std::string> splits = fitting_splits(config, checkpoint, gpus);
  if (gpus.size() > 1 && !splits.empty())
    text += fmt::format("\nWhat fits the {} cards of this machine:", gpus.size());
  else if (!splits.empty())
    text += "\nWhat fits this card:";
  for (const std::string& split : splits) text += "\n  " + split;
  return make_error(ErrorCode::kMemory, "{}", text);
}

Result<void> check_fit(const Config& config) {
  const Result<std::vector<GpuInfo>> gpus = find_gpus(config.gpu.device);
  return gpus ? check_fit(config, *gpus) : Result<void>();
}

}  // namespace deepinfer
