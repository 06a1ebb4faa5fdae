// What a GPU's kernel is for, told by its name.
#pragma once

#include <string>
#include <string_view>

namespace deepinfer {

enum class Work : uint8_t { kMatrices, kAttention, kSampling, kRest, kCopies };
inline constexpr size_t kWorks = 5;

// Of DeviceTrace::names.
Work work_of(std::string_view name);

// For people: demangled, without template arguments and parameters, "deepinfer::cuda::decode_kernel".
std::string readable_name(const std::string& name);

}  // namespace deepinfer
