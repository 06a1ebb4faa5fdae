// The header of a GGUF file, checked. Format: docs/gguf.md of ggml; versions 2 and 3, little-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "deepinfer/result.h"
#include "tensor/dtype.h"

namespace deepinfer {

// The numbers of the format.
enum class GgufType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

struct GgufArray {
  GgufType type = GgufType::kU8;
  uint64_t count = 0;
  const std::byte* data = nullptr;        // the elements as in the file, maybe misaligned; not for strings
  std::vector<std::string_view> strings;  // for strings
};

// Integers are widened, F32 becomes double.
using GgufValue = std::variant<uint64_t, int64_t, double, bool, std::string_view, GgufArray>;

struct GgufTensor {
  std::string_view name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // outermost first: the file's order reversed
  uint64_t offset = 0;         // from the start of the file
  uint64_t bytes = 0;
};

// Borrows from the bytes that it was parsed from.
struct GgufFile {
  uint32_t version = 0;
  uint64_t alignment = 32;
  std::map<std::string_view, GgufValue> metadata;
  std::vector<GgufTensor> tensors;  // in the order of the file
};

// kModel unless every count, length, offset and extent lies inside `file`, no key and no tensor comes twice,
// and the tensors fill the data section without overlap or hole. `name` stands in the messages.
Result<GgufFile> parse_gguf(std::span<const std::byte> file, const std::string& name);

}  // namespace deepinfer
