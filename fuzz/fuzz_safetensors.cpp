// A safetensors file of any content: every extent must lie inside.
#include "base/check.h"
#include "model/safetensors.h"

using namespace deepinfer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const auto entries = parse_safetensors(bytes, "fuzz.safetensors");
  if (!entries) return 0;
  uint64_t total = 0;
  for (const SafetensorsEntry& e : *entries) {
    DI_CHECK(e.offset <= size && e.bytes <= size - e.offset, "tensor outside of the file");
    total += e.bytes;
  }
  DI_CHECK(total <= size, "tensors overlap");
  return 0;
}
