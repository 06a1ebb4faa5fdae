// The body of a request, any bytes: what is accepted lies inside every range, for chat and for completions.
#include <cmath>
#include <string_view>

#include "base/check.h"
#include "server/openai.h"

using namespace deepinfer;
using namespace deepinfer::server;

namespace {

constexpr int kVocab = 1000;

void check_common(const GenerationRequest& r) {
  const SamplingParams& s = r.sampling;
  DI_CHECK(s.n >= 1 && s.n <= 128, "n {}", s.n);
  DI_CHECK(s.temperature >= 0 && s.temperature <= 2 && s.top_p > 0 && s.top_p <= 1, "temperature {} top_p {}",
           s.temperature, s.top_p);
  DI_CHECK(s.min_p >= 0 && s.min_p <= 1 && s.top_k >= -1, "min_p {} top_k {}", s.min_p, s.top_k);
  DI_CHECK(std::abs(s.presence_penalty) <= 2 && std::abs(s.frequency_penalty) <= 2, "penalties");
  DI_CHECK(s.repetition_penalty > 0 && s.repetition_penalty <= 2, "repetition_penalty {}",
           s.repetition_penalty);
  DI_CHECK(s.logprobs >= -1 && s.logprobs <= 20 && s.min_tokens >= 0, "logprobs {}", s.logprobs);
  DI_CHECK(!r.max_tokens || *r.max_tokens >= s.min_tokens, "max_tokens");
  DI_CHECK(r.stop.size() <= 4, "{} stop strings", r.stop.size());
  for (const std::string& stop : r.stop) DI_CHECK(!stop.empty(), "an empty stop string");
  for (const auto& [id, bias] : s.logit_bias)
    DI_CHECK(id >= 0 && id < kVocab && std::abs(bias) <= 100, "logit_bias {} {}", id, bias);
  for (const int32_t id : s.stop_token_ids) DI_CHECK(id >= 0 && id < kVocab, "stop id {}", id);
}

void check_error(const Error& error) {
  DI_CHECK(error.code == ErrorCode::kInvalidArgument || error.code == ErrorCode::kUnsupported, "{}",
           error.message);
  DI_CHECK(!error.message.empty() && !error.param.empty(), "an error without words: {}", error.message);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto body = parse_body({reinterpret_cast<const char*>(data), size});
  if (!body) return 0;
  (void)unknown_fields(*body);
  const ParseContext context{{}, {}, kVocab};
  if (const auto chat = parse_chat(*body, context)) {
    check_common(*chat);
    DI_CHECK(!chat->messages.empty(), "no messages");
    for (const auto& message : chat->messages) {
      const auto& content = message.as_object().at("content");
      DI_CHECK(content.is_string() || content.is_null(), "a content that no template reads");
    }
  } else {
    check_error(chat.error());
  }
  if (const auto completion = parse_completion(*body, context)) {
    check_common(*completion);
    DI_CHECK(!completion->prompts.empty(), "no prompts");
  } else {
    check_error(completion.error());
  }
  return 0;
}
