// One layer from F32 to a checkpoint's tensors, with the samples going through it.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "quantize/decoder_layer.h"
#include "quantize/plan.h"
#include "quantize/quantized_linear.h"
#include "quantize/tensor_file.h"

namespace deepinfer::quantize {

class LayerQuantizer {
 public:
  // `plan` and `pool` outlive it. `stopped` is asked between steps.
  LayerQuantizer(const Plan& plan, ThreadPool& pool, std::vector<float> inv_freq,
                 std::function<bool()> stopped)
      : plan_(plan),
        pool_(pool),
        forward_(plan.checkpoint.config, std::move(inv_freq), pool),
        stopped_(std::move(stopped)) {}

  // The layer's tensors; `hidden` (empty for fp8 and int4) enters the layer and comes out as what the
  // quantized layer makes of it. kCancelled when stopped.
  Result<std::vector<OutTensor>> run(DecoderLayer layer, Hidden& hidden);

 private:
  Result<void> round(DecoderLayer& layer);
  Result<void> gptq(DecoderLayer& layer, Hidden& hidden);
  Result<void> gptq_step(std::vector<Linear*> linears);
  Result<void> awq(DecoderLayer& layer, Hidden& hidden);
  Result<std::vector<float>> awq_step(std::vector<Linear*> linears, const std::vector<int32_t>& shared);
  Result<void> awq_norm_step(std::vector<Linear*> linears, Norm& norm);
  void awq_divide_before(Linear& before, const std::vector<float>& factors,
                         const std::vector<int32_t>& shared);
  Result<void> check_stopped() const;
  std::vector<OutTensor> pack(const DecoderLayer& layer) const;

  const Plan& plan_;
  ThreadPool& pool_;
  LayerForward forward_;
  std::function<bool()> stopped_;
  std::vector<float> x_;  // [tokens, cols]: the input of the linears that are being quantized
  std::vector<QuantizedLinear> done_;
};

}  // namespace deepinfer::quantize
