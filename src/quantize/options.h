// What `deepinfer quantize` is asked for.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace deepinfer::quantize {

enum class Method : uint8_t { kAwq, kGptq, kFp8, kInt4 };

constexpr std::string_view method_name(Method method) {
  switch (method) {
    case Method::kAwq:
      return "awq";
    case Method::kGptq:
      return "gptq";
    case Method::kFp8:
      return "fp8";
    case Method::kInt4:
      break;
  }
  return "int4";
}
constexpr bool needs_calibration(Method method) {
  return method == Method::kAwq || method == Method::kGptq;
}

struct Options {
  std::filesystem::path model;  // a Hugging Face folder with F32, F16 or BF16 weights
  std::filesystem::path out;    // new or empty; beside it <out>.partial while the work goes on
  Method method = Method::kAwq;
  // Columns that share a scale: 32, 64, 128, or -1 for a whole row (gptq, int4). 0: 128, or less where that
  // does not divide the model's columns. Of no meaning for fp8.
  int64_t group = 0;
  bool act_order = false;             // gptq: columns of the largest inputs first
  std::filesystem::path calibration;  // empty: the text that comes with the program
  int64_t samples = 128;
  int64_t sample_tokens = 512;
  int threads = 0;  // 0: what the machine allows
};

}  // namespace deepinfer::quantize
