#include "profile/kernel_kind.h"

#include <cxxabi.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <memory>

namespace deepinfer {
namespace {

struct Rule {
  std::string_view part;  // of the readable name in lower case
  Work work;
};

// The first that is found counts. Ours are those of backend/cuda; the others are FlashInfer's and cuBLASLt's.
constexpr Rule kRules[] = {
    {"copy_kernel", Work::kRest},

    {"fill_random", Work::kRest},

    {"sample_rows", Work::kSampling},
    {"score_rows", Work::kSampling},
    {"decode_kernel", Work::kAttention},
    {"prefill_kernel", Work::kAttention},
    {"plan_kernel", Work::kAttention},
    {"batchdecode", Work::kAttention},
    {"batchprefill", Work::kAttention},
    {"flashinfer", Work::kAttention},
    {"attention", Work::kAttention},
    {"mha", Work::kAttention},
    {"xqa", Work::kAttention},
    {"mergestates", Work::kAttention},
    {"skinny", Work::kMatrices},
    {"tile_kernel", Work::kMatrices},
    {"f8_kernel", Work::kMatrices},
    {"codes_kernel", Work::kMatrices},
    {"dequantize_kernel", Work::kMatrices},
    {"combine", Work::kMatrices},
    {"finish_kernel", Work::kMatrices},
    {"bias_kernel", Work::kMatrices},
    {"gemm", Work::kMatrices},
    {"gemv", Work::kMatrices},
    {"nvjet", Work::kMatrices},
    {"cutlass", Work::kMatrices},
    {"cublas", Work::kMatrices},
    {"splitk", Work::kMatrices},
    // Last: "prefill" has the word too.
    {"copy", Work::kCopies},
    {"fill", Work::kCopies},
};

}  // namespace

std::string readable_name(const std::string& name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> whole(
      abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status), std::free);
  std::string text = status == 0 && whole != nullptr ? whole.get() : name;
  for (const std::string_view unnamed : {"(anonymous namespace)::", "void "})
    for (size_t at = text.find(unnamed); at != std::string::npos; at = text.find(unnamed))
      text.erase(at, unnamed.size());
  text.resize(std::min(text.find_first_of("<("), text.size()));
  return text.empty() ? name : text;
}

Work work_of(std::string_view name) {
  std::string lower(name);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  for (const Rule& rule : kRules)
    if (lower.find(rule.part) != std::string::npos) return rule.work;
  return Work::kRest;
}

}  // namespace deepinfer
