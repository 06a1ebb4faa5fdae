// A GGUF file of any content: header, configuration, tokenizer; every tensor's bytes must lie inside.
#include <algorithm>
#include <vector>

#include "base/check.h"
#include "model/gguf_model.h"
#include "quant/formats.h"
#include "text/tokenizer.h"

using namespace deepinfer;

namespace {

void read_tensor(const GgufTensor& t, std::span<const std::byte> file) {
  DI_CHECK(t.offset <= file.size() && t.bytes <= file.size() - t.offset, "tensor outside of the file");
  const QuantFormat* format = find_format(t.dtype);
  const int64_t cols = t.shape.back();
  if (format == nullptr || cols > 1 << 20) return;
  std::vector<float> row(cols);
  format->dequantize(file.data() + t.offset + t.bytes - row_bytes(t.dtype, cols), cols, row.data());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const auto file = parse_gguf(bytes, "fuzz.gguf");
  if (!file) return 0;
  for (const GgufTensor& t : file->tensors) {
    read_tensor(t, bytes);
    DI_CHECK(!hf_tensor_name(t.name).empty(), "a tensor lost its name");
  }
  if (const auto config = gguf_config(*file, "fuzz.gguf")) {
    DI_CHECK(config->heads % config->kv_heads == 0 && config->vocab_size > 0, "a configuration out of range");
  }
  (void)gguf_generation(*file, "fuzz.gguf");
  (void)gguf_chat_template(*file);
  if (auto tokenizer = gguf_tokenizer(*file, "fuzz.gguf")) {
    const auto made = make_tokenizer(std::move(*tokenizer));
    if (made) (void)(*made)->encode("The quick brown fox \xf0\x9f\xa6\x8a 12345  <|im_end|>\n");
  }
  return 0;
}
