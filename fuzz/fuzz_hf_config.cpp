// config.json and generation_config.json of any content.
#include "base/check.h"
#include "model/hf_config.h"

using namespace deepinfer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto config = parse_hf_config(text, "config.json"))
    DI_CHECK(config->heads % config->kv_heads == 0 && config->head_dim >= 2 && config->vocab_size > 0,
             "a configuration out of range");
  (void)parse_generation_config(text, "generation_config.json");
  return 0;
}
