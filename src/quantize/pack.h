// From canonical codes to the tensors of a checkpoint's layout. One file each.
#pragma once

#include <vector>

#include "quantize/quantized_linear.h"
#include "quantize/tensor_file.h"

namespace deepinfer::quantize {

// pack_gptq.cpp: qweight, qzeros, scales, g_idx. "gptq" (v1): one less than the zero point is stored.
void pack_gptq(const QuantizedLinear& linear, std::vector<OutTensor>& out);
// pack_awq.cpp: qweight, qzeros, scales. "awq", version "gemm".
void pack_awq(const QuantizedLinear& linear, std::vector<OutTensor>& out);
// pack_compressed.cpp: compressed-tensors' "pack-quantized" and "float-quantized".
void pack_int4(const QuantizedLinear& linear, std::vector<OutTensor>& out);
void pack_fp8(const QuantizedLinear& linear, std::vector<OutTensor>& out);

// A tensor of this dtype ("F32", "F16", "BF16") from F32 values.
OutTensor float_tensor(const std::string& name, std::vector<int64_t> shape, const std::vector<float>& values,
                       DType dtype);
// An I32 tensor, to be filled through words().
OutTensor word_tensor(const std::string& name, std::vector<int64_t> shape);
inline uint32_t* words(OutTensor& tensor) {
  return reinterpret_cast<uint32_t*>(tensor.data.data());
}

// Scales [rows, groups] as [groups, rows].
OutTensor transposed_scales(const QuantizedLinear& linear);

}  // namespace deepinfer::quantize
