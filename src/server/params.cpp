#include "server/params.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <limits>

#include "base/check.h"

namespace deepinfer::server {

namespace json = boost::json;

namespace {

using enum ParamKind;
using Request = GenerationRequest;

constexpr double kMaxInt = 2147483647;

template <class T>
struct Plain {
  using Type = T;
};
template <class T>
struct Plain<std::optional<T>> {
  using Type = T;
};

template <auto kMember>
void sampling(Request& request, double value) {
  auto& field = request.sampling.*kMember;
  field = static_cast<std::remove_reference_t<decltype(field)>>(value);
}

template <auto kMember>
void request(Request& request, double value) {
  auto& field = request.*kMember;
  field = static_cast<typename Plain<std::remove_reference_t<decltype(field)>>::Type>(value);
}

void completion_logprobs(Request& request, double value) {
  request.logprobs = true;
  request.top_logprobs = static_cast<int>(value);
}

constexpr ParamRow number(std::string_view name, double low, double high, std::string_view origin,
                          std::string_view fallback, std::string_view text, void (*set)(Request&, double)) {
  return {name, kBoth, kNumber, low, high, origin, fallback, text, set, nullptr};
}
constexpr ParamRow above(std::string_view name, double low, double high, std::string_view origin,
                         std::string_view fallback, std::string_view text, void (*set)(Request&, double)) {
  return {name, kBoth, kNumberAbove, low, high, origin, fallback, text, set, nullptr};
}
constexpr ParamRow integer(std::string_view name, double low, double high, std::string_view origin,
                           std::string_view fallback, std::string_view text, void (*set)(Request&, double)) {
  return {name, kBoth, kInteger, low, high, origin, fallback, text, set, nullptr};
}
constexpr ParamRow boolean(std::string_view name, std::string_view origin, std::string_view fallback,
                           std::string_view text, void (*set)(Request&, double)) {
  return {name, kBoth, kBool, 0, 1, origin, fallback, text, set, nullptr};
}
constexpr ParamRow other(std::string_view name, std::string_view origin, std::string_view fallback,
                         std::string_view text, FieldFunction read = nullptr) {
  return {name, kBoth, kOther, 0, 0, origin, fallback, text, nullptr, read};
}
constexpr ParamRow ignored(std::string_view name, std::string_view origin, std::string_view text) {
  return {name, kBoth, kIgnored, 0, 0, origin, "", text, nullptr, nullptr};
}
constexpr ParamRow only(Form form, ParamRow row) {
  row.forms = form;
  return row;
}

constexpr const char* kOpenAi = "OpenAI";
constexpr const char* kVllm = "vLLM";
constexpr const char* kLlama = "llama.cpp";
constexpr const char* kOurs = "DeepInfer";
using S = SamplingParams;

// Later rows overwrite earlier ones: max_completion_tokens wins over max_tokens.
constexpr ParamRow kParams[] = {
    // What is asked.
    other("model", kOpenAi, "the only model", "string: a name that /v1/models lists", read_model),
    only(kChat, other("messages", kOpenAi, "required",
                      "array of messages: role, content (text or parts of type text), tool_calls")),
    only(kCompletion,
         other("prompt", kOpenAi, "required", "string, token ids, or an array of up to 1024 of either")),
    // How long the answer is.
    integer("n", 1, 128, kOpenAi, "1", "choices for each prompt; they share one prefill", sampling<&S::n>),
    only(kChat,
         integer("max_tokens", 1, kMaxInt, kOpenAi, "the rest of the context",
                 "tokens of an answer at most; the context is a limit too", request<&Request::max_tokens>)),
    only(kChat, integer("max_completion_tokens", 1, kMaxInt, kOpenAi, "the rest of the context",
                        "the same; wins over max_tokens", request<&Request::max_tokens>)),
    only(kCompletion, integer("max_tokens", 0, kMaxInt, kOpenAi, "16",
                              "tokens of an answer at most; 0: nothing is generated, for echo and scoring",
                              request<&Request::max_tokens>)),
    integer("min_tokens", 0, kMaxInt, kVllm, "0", "no end of sequence and no stop token before",
            sampling<&S::min_tokens>),
    boolean("ignore_eos", kVllm, "false", "go on after the end of sequence", sampling<&S::ignore_eos>),
    other("stop", kOpenAi, "none", "string, or array of up to 4 of 1 to 4096 bytes", read_stop),
    other("stop_token_ids", kVllm, "none", "array of up to 1024 token ids", read_stop_ids),
    boolean("include_stop_str_in_output", kVllm, "false", "the text keeps what stopped it",
            request<&Request::include_stop>),
    integer("num_speculative_tokens", -1, 32, "deepinfer", "-1",
            "tokens guessed at a time from the text before: the same answer, sooner where it repeats; 0: "
            "none, -1: as "
            "the setting of this name says",
            sampling<&S::num_speculative_tokens>),
    // How a token is chosen.
    number("temperature", 0, 2, kOpenAi, "1", "0: always the most likely token", sampling<&S::temperature>),
    above("top_p", 0, 1, kOpenAi, "1", "the most likely tokens up to this sum; 1: all", sampling<&S::top_p>),
    integer("top_k", -1, kMaxInt, kVllm, "-1", "the k most likely tokens; -1 and 0: all",
            sampling<&S::top_k>),
    number("min_p", 0, 1, kVllm, "0", "tokens of at least this part of the largest probability",
           sampling<&S::min_p>),
    other("seed", kOpenAi, "drawn at random", "integer of 64 bits; each choice has its own seed from it",
          read_seed),
    number("presence_penalty", -2, 2, kOpenAi, "0", "subtracted once for a token that the answer has",
           sampling<&S::presence_penalty>),
    number("frequency_penalty", -2, 2, kOpenAi, "0", "subtracted for each time that the answer has a token",
           sampling<&S::frequency_penalty>),
    above("repetition_penalty", 0, 2, kVllm, "1", "divides logits of tokens of prompt and answer; 1: off",
          sampling<&S::repetition_penalty>),
    other("logit_bias", kOpenAi, "none", "object: token id to -100 to 100, up to 1024 entries",
          read_logit_bias),
    other("allowed_token_ids", kVllm, "all", "array of token ids: no other is chosen", read_allowed_ids),
    other("bad_words", kVllm, "none",
          "array of up to 1024 strings that never appear, with and without a leading space", read_bad_words),
    above("typical_p", 0, 1, kLlama, "1", "locally typical tokens up to this sum; 1: off",
          sampling<&S::typical_p>),
    number("top_n_sigma", -1000, 1000, kLlama, "-1",
           "tokens within so many standard deviations of the largest logit; 0 and less: off",
           sampling<&S::top_n_sigma>),
    number("xtc_probability", 0, 1, kLlama, "0", "how often the most likely tokens are left out; 0: off",
           sampling<&S::xtc_probability>),
    number("xtc_threshold", 0, 1, kLlama, "0.1", "tokens above it can be left out by XTC; above 0.5: off",
           sampling<&S::xtc_threshold>),
    number("dynatemp_range", 0, 2, kLlama, "0", "the temperature moves so far by the entropy; 0: off",
           sampling<&S::dynatemp_range>),
    above("dynatemp_exponent", 0, 10, kLlama, "1", "how the entropy moves it",
          sampling<&S::dynatemp_exponent>),
    integer("mirostat", 0, 2, kLlama, "0", "version of mirostat, which replaces the other cuts; 0: off",
            sampling<&S::mirostat>),
    above("mirostat_tau", 0, 20, kLlama, "5", "its target of surprise, in bits", sampling<&S::mirostat_tau>),
    above("mirostat_eta", 0, 1, kLlama, "0.1", "its rate of learning", sampling<&S::mirostat_eta>),
    number("dry_multiplier", 0, 10, kLlama, "0", "strength of the penalty on repeated sequences; 0: off",
           sampling<&S::dry_multiplier>),
    number("dry_base", 1, 10, kLlama, "1.75", "the penalty grows by this with each repeated token",
           sampling<&S::dry_base>),
    integer("dry_allowed_length", 1, kMaxInt, kLlama, "2", "repetitions up to this length are free",
            sampling<&S::dry_allowed_length>),
    integer("dry_penalty_last_n", -1, kMaxInt, kLlama, "-1", "tokens looked back; -1: the context, 0: off",
            sampling<&S::dry_penalty_last_n>),
    other("dry_sequence_breakers", kLlama, R"(["\n", ":", "\"", "*"])",
          "array of up to 64 strings at which a repetition ends; [] for none", read_dry_breakers),
    boolean("deterministic", kOurs, "false",
            "the same tokens whatever else runs; on a GPU it needs gpu.deterministic",
            request<&Request::deterministic>),
    // What the answer holds.
    only(kChat, boolean("logprobs", kOpenAi, "false", "log probabilities of the answer's tokens",
                        request<&Request::logprobs>)),
    only(kChat, integer("top_logprobs", 0, 20, kOpenAi, "0",
                        "and of so many most likely ones; needs logprobs", request<&Request::top_logprobs>)),
    only(kCompletion,
         integer("logprobs", 0, 20, kOpenAi, "none",
                 "log probabilities of tokens and of so many most likely ones; of the prompt too "
                 "with echo",
                 completion_logprobs)),
    integer("prompt_logprobs", 0, 20, kVllm, "none",
            "log probabilities of the prompt's tokens and of so many most likely ones; not with stream",
            request<&Request::prompt_logprobs>),
    boolean("echo", kOpenAi, "false",
            "completions: the prompt stands before the answer; chat: the last message does, where it is the "
            "assistant's",
            request<&Request::echo>),
    boolean("skip_special_tokens", kVllm, "true", "special tokens give no text",
            request<&Request::skip_special_tokens>),
    boolean("return_token_ids", kVllm, "false", "token ids of prompt and answer",
            request<&Request::return_token_ids>),
    boolean("return_tokens_as_token_ids", kVllm, "false", "tokens of logprobs are written token_id:7",
            request<&Request::return_tokens_as_token_ids>),
    boolean("stream", kOpenAi, "false", "the answer comes as server-sent events", request<&Request::stream>),
    other("stream_options", kOpenAi, "none",
          "object: include_usage, continuous_usage_stats (vLLM); only with stream", read_stream_options),
    // How the prompt is made.
    boolean("add_special_tokens", kVllm, "chat false, completions true",
            "a beginning of sequence before the prompt where the model wants one",
            request<&Request::add_special_tokens>),
    integer("truncate_prompt_tokens", -1, kMaxInt, kVllm, "none",
            "only so many last tokens of the prompt; -1: as many as leave room for the answer",
            request<&Request::truncate_prompt_tokens>),
    other("truncation_side", kVllm, "left", "left or right: which end of a prompt that is truncated goes",
          read_truncation_side),
    only(kChat,
         other("add_generation_prompt", kVllm, "true", "boolean: the template opens the assistant's turn")),
    only(kChat, other("continue_final_message", kVllm, "false",
                      "boolean: the answer goes on inside the last message, the assistant's")),
    only(kChat, other("chat_template", kVllm, "the model's",
                      "string; only with server.trust_request_chat_template")),
    only(kChat, other("chat_template_kwargs", kVllm, "none",
                      "object of up to 64 plain values: variables for the template")),
    only(kChat, other("documents", kVllm, "none", "array of up to 256 objects of strings, for the template")),
    only(
        kChat,
        other("reasoning_effort", kOpenAi, "none",
              "none, minimal, low, medium, high, xhigh or max: for the template, with enable_thinking unless "
              "chat_template_kwargs has that")),
    // How it is served.
    integer("priority", -kMaxInt, kMaxInt, kVllm, "0", "lower is served first", request<&Request::priority>),
    other("cache_salt", kVllm, "none",
          "string of 1 to 1024 bytes: prefixes are shared only where it is equal", read_cache_salt),
    other("request_id", kVllm, "made here",
          "string of 1 to 128 visible ASCII characters: part of the answer's id", read_request_id),
    // Accepted without effect.
    ignored("user", kOpenAi, "not looked at"),
    ignored("store", kOpenAi, "nothing is stored"),
    ignored("metadata", kOpenAi, "not looked at"),
    ignored("service_tier", kOpenAi, "there is one tier"),
    ignored("safety_identifier", kOpenAi, "not looked at"),
    ignored("prompt_cache_key", kOpenAi, "prefixes are found by their tokens"),
    ignored("prompt_cache_retention", kOpenAi, "prefixes stay while there is room"),
    only(kChat, ignored("parallel_tool_calls", kOpenAi, "there are no tool calls yet")),
    ignored("session_id", kVllm, "prefixes are found by their tokens"),
    ignored("stream_interval", kVllm, "each step's tokens are sent at once"),
    only(kChat, ignored("include_reasoning", kVllm, "reasoning is part of the text")),
    ignored("spaces_between_special_tokens", kVllm, "the tokenizers here put none between them"),
};

constexpr RefusedRow kRefused[] = {
    {"tools", kChat, kOpenAi, "tool calls are not built yet", {"[]"}},
    {"tool_choice", kChat, kOpenAi, "tool calls are not built yet", {R"("none")", R"("auto")"}},
    {"functions", kChat, kOpenAi, "tool calls are not built yet", {"[]"}},
    {"function_call", kChat, kOpenAi, "tool calls are not built yet", {R"("none")", R"("auto")"}},
    {"response_format", kBoth, kOpenAi, "structured output is not built yet", {R"({"type":"text"})"}},
    {"structured_outputs", kBoth, kVllm, "structured output is not built yet", {}},
    {"guided_json", kBoth, kVllm, "structured output is not built yet", {}},
    {"guided_regex", kBoth, kVllm, "structured output is not built yet", {}},
    {"guided_choice", kBoth, kVllm, "structured output is not built yet", {}},
    {"guided_grammar", kBoth, kVllm, "structured output is not built yet", {}},
    {"json_schema", kBoth, kLlama, "structured output is not built yet", {}},
    {"grammar", kBoth, kLlama, "structured output is not built yet", {R"("")"}},
    {"modalities", kChat, kOpenAi, "models here give text alone", {R"(["text"])"}},
    {"audio", kChat, kOpenAi, "models here give text alone", {}},
    {"prediction", kChat, kOpenAi, "there is no predicted output", {}},
    {"web_search_options", kChat, kOpenAi, "there is no search", {}},
    {"verbosity", kChat, kOpenAi, "say it in the prompt", {R"("medium")"}},
    {"mm_processor_kwargs", kBoth, kVllm, "models here take text alone", {"{}"}},
    {"suffix", kCompletion, kOpenAi, "text is not filled into a gap; send the prompt alone", {R"("")"}},
    {"prompt_embeds", kBoth, kVllm, "prompts are text or token ids", {}},
    {"use_beam_search",
     kBoth,
     kVllm,
     "there is no beam search; sample with n, or with temperature 0",
     {"false"}},
    {"length_penalty", kBoth, kVllm, "there is no beam search", {"1", "1E0"}},
    {"logprob_token_ids", kBoth, kVllm, "ask for the most likely tokens by number", {"[]"}},
    {"repetition_detection", kBoth, kVllm, "use the DRY parameters", {}},
    {"thinking_token_budget", kBoth, kVllm, "use max_tokens", {"-1"}},
    {"return_prompt_text", kChat, kVllm, "use return_token_ids and /detokenize", {"false"}},
    {"kv_transfer_params", kBoth, kVllm, "prefill and decode run in one server", {"{}"}},
    {"ec_transfer_params", kBoth, kVllm, "models here take text alone", {"{}"}},
    {"vllm_xargs", kBoth, kVllm, "there are no extensions", {"{}"}},
    {"logits_processors", kBoth, kVllm, "code of clients does not run here; use logit_bias", {"[]"}},
};

void read_param(FieldReader& reader, const ParamRow& row, Request& request) {
  std::optional<double> value;
  if (row.kind == kBool)
    value = reader.boolean(row.name);
  else if (row.kind == kInteger)
    value = reader.integer(row.name, static_cast<int64_t>(row.low), static_cast<int64_t>(row.high));
  else
    value = reader.number(row.name, row.low, row.high, row.kind == kNumberAbove);
  // What is above the end as a double must stay so as a float.
  if (value && row.kind == kNumberAbove)
    value = std::max(*value, row.low + double{std::numeric_limits<float>::min()});
  if (value) row.set(request, *value);
}

}  // namespace

std::span<const ParamRow> param_table() {
  return kParams;
}

std::span<const RefusedRow> refused_table() {
  return kRefused;
}

void read_params(FieldReader& reader, Form form, const ParseContext& context, Request& request) {
  for (const ParamRow& row : kParams) {
    if ((row.forms & form) == 0 || !reader.find(row.name)) continue;
    if (row.read)
      row.read(reader, context, request);
    else if (row.set)
      read_param(reader, row, request);
  }
}

void refuse_unsupported(FieldReader& reader, Form form) {
  for (const RefusedRow& row : kRefused) {
    if ((row.forms & form) == 0) continue;
    const json::value* value = reader.find(row.name);
    if (!value) continue;
    const std::string text = json::serialize(*value);
    if (std::find(std::begin(row.neutral), std::end(row.neutral), text) != std::end(row.neutral)) continue;
    const std::string_view usual = row.neutral[0];
    reader.fail(
        unsupported_error(row.name, fmt::format("not supported by this server: {}; leave it out{}{}",
                                                row.instead, usual.empty() ? "" : " or send ", usual)));
  }
}

bool is_known_param(std::string_view name) {
  const auto same = [name](const auto& row) { return row.name == name; };
  return name == "best_of" || std::any_of(std::begin(kParams), std::end(kParams), same) ||
         std::any_of(std::begin(kRefused), std::end(kRefused), same);
}

}  // namespace deepinfer::server
