#include "server/reply_format.h"

#include <fmt/format.h>

#include <boost/json/serialize.hpp>
#include <cmath>
#include <iterator>

#include "server/sse.h"
#include "text/utf8.h"

namespace deepinfer::server {

namespace {

// Everything of a chunk before its choices.
std::string chunk_start(const ReplyHead& head, std::string_view object) {
  return fmt::format(R"({{"id":{},"object":"{}","created":{},"model":{},"system_fingerprint":{},)",
                     json_string(head.id), object, head.created, json_string(head.model),
                     json_string(head.fingerprint));
}

std::string_view chunk_end(const ReplyHead& head) {
  return head.include_usage ? R"(],"usage":null})" : "]}";
}

std::string quoted_or_null(std::string_view finish) {
  return finish.empty() ? "null" : fmt::format("\"{}\"", finish);
}

class ChatFormat final : public ReplyFormat {
 public:
  ChatFormat(ReplyHead head, const Tokenizer& tokenizer, bool logprobs)
      : head_(std::move(head)),
        tokenizer_(tokenizer),
        logprobs_(logprobs),
        start_(chunk_start(head_, "chat.completion.chunk")) {}

  std::string opening(int choices) override {
    std::string events;
    for (int i = 0; i < choices; ++i) events += chunk(i, R"({"role":"assistant","content":""})", "null", "");
    return events;
  }

  std::string update(const ChoiceUpdate& update) override {
    std::string events;
    if (!update.text.empty() || !update.tokens.empty())
      events += chunk(update.index, fmt::format(R"({{"content":{}}})", json_string(update.text)),
                      logprobs_ ? json_chat_logprobs(tokenizer_, update.tokens) : "null", "");
    if (!update.finish.empty()) events += chunk(update.index, "{}", "null", update.finish);
    return events;
  }

  std::string usage(const Usage& usage) override {
    return sse_event(fmt::format(R"({}"choices":[],"usage":{}}})", start_, json_usage(usage)));
  }

  std::string whole(const std::vector<WholeChoice>& choices, const Usage& usage) override {
    std::string out = chunk_start(head_, "chat.completion") + R"("choices":[)";
    for (size_t i = 0; i < choices.size(); ++i)
      fmt::format_to(
          std::back_inserter(out),
          R"({}{{"index":{},"message":{{"role":"assistant","content":{},"refusal":null}},"logprobs":{},"finish_reason":{}}})",
          i ? "," : "", i, json_string(choices[i].text),
          logprobs_ ? json_chat_logprobs(tokenizer_, choices[i].tokens) : "null",
          quoted_or_null(choices[i].finish));
    return fmt::format(R"({}],"usage":{}}})", out, json_usage(usage));
  }

 private:
  std::string chunk(int index, std::string_view delta, std::string_view logprobs,
                    std::string_view finish) const {
    return sse_event(
        fmt::format(R"({}"choices":[{{"index":{},"delta":{},"logprobs":{},"finish_reason":{}}}{})", start_,
                    index, delta, logprobs, quoted_or_null(finish), chunk_end(head_)));
  }

  const ReplyHead head_;
  const Tokenizer& tokenizer_;
  const bool logprobs_;
  const std::string start_;
};

class CompletionFormat final : public ReplyFormat {
 public:
  CompletionFormat(ReplyHead head, const Tokenizer& tokenizer, bool logprobs, std::vector<std::string> echo)
      : head_(std::move(head)),
        tokenizer_(tokenizer),
        logprobs_(logprobs),
        echo_(std::move(echo)),
        start_(chunk_start(head_, "text_completion")) {}

  std::string opening(int choices) override {
    offsets_.assign(static_cast<size_t>(choices), 0);
    std::string events;
    for (size_t i = 0; i < echo_.size(); ++i) {
      offsets_[i] = count_characters(echo_[i]);
      events += chunk(static_cast<int>(i), echo_[i], "null", "");
    }
    return events;
  }

  std::string update(const ChoiceUpdate& update) override {
    const bool tokens = logprobs_ && !update.tokens.empty();
    return chunk(update.index, update.text,
                 tokens ? json_completion_logprobs(tokenizer_, update.tokens,
                                                   offsets_.at(static_cast<size_t>(update.index)))
                        : "null",
                 update.finish);
  }

  std::string usage(const Usage& usage) override {
    return sse_event(fmt::format(R"({}"choices":[],"usage":{}}})", start_, json_usage(usage)));
  }

  std::string whole(const std::vector<WholeChoice>& choices, const Usage& usage) override {
    std::string out = start_ + R"("choices":[)";
    for (size_t i = 0; i < choices.size(); ++i) {
      const std::string_view echo = echo_.empty() ? std::string_view() : std::string_view(echo_[i]);
      int64_t offset = count_characters(echo);
      fmt::format_to(std::back_inserter(out),
                     R"({}{{"index":{},"text":{},"logprobs":{},"finish_reason":{}}})", i ? "," : "", i,
                     json_string(std::string(echo) + choices[i].text),
                     logprobs_ ? json_completion_logprobs(tokenizer_, choices[i].tokens, offset) : "null",
                     quoted_or_null(choices[i].finish));
    }
    return fmt::format(R"({}],"usage":{}}})", out, json_usage(usage));
  }

 private:
  std::string chunk(int index, std::string_view text, std::string_view logprobs,
                    std::string_view finish) const {
    return sse_event(
        fmt::format(R"({}"choices":[{{"index":{},"text":{},"logprobs":{},"finish_reason":{}}}{})", start_,
                    index, json_string(text), logprobs, quoted_or_null(finish), chunk_end(head_)));
  }

  const ReplyHead head_;
  const Tokenizer& tokenizer_;
  const bool logprobs_;
  const std::vector<std::string> echo_;
  const std::string start_;
  std::vector<int64_t> offsets_;  // [choices] characters sent so far
};

// A name for a token that stays unique when its bytes are no text.
std::string completion_token(std::string_view bytes) {
  if (is_valid_utf8(bytes)) return std::string(bytes);
  std::string name = "bytes:";
  for (const char c : bytes)
    fmt::format_to(std::back_inserter(name), "\\x{:02x}", static_cast<unsigned char>(c));
  return name;
}

void append_chat_token(std::string& out, const Tokenizer& tokenizer, int32_t id, float logprob) {
  const std::string_view bytes = tokenizer.bytes(id);
  fmt::format_to(std::back_inserter(out), R"("token":{},"logprob":{},"bytes":[)", json_string(bytes),
                 json_logprob(logprob));
  for (size_t i = 0; i < bytes.size(); ++i)
    fmt::format_to(std::back_inserter(out), "{}{}", i ? "," : "", static_cast<unsigned char>(bytes[i]));
  out += ']';
}

}  // namespace

std::unique_ptr<ReplyFormat> make_chat_format(ReplyHead head, const Tokenizer& tokenizer, bool logprobs) {
  return std::make_unique<ChatFormat>(std::move(head), tokenizer, logprobs);
}

std::unique_ptr<ReplyFormat> make_completion_format(ReplyHead head, const Tokenizer& tokenizer, bool logprobs,
                                                    std::vector<std::string> echo) {
  return std::make_unique<CompletionFormat>(std::move(head), tokenizer, logprobs, std::move(echo));
}

std::string json_string(std::string_view text) {
  if (is_valid_utf8(text)) return boost::json::serialize(text);
  return boost::json::serialize(std::string_view(sanitize_utf8(text)));
}

std::string json_logprob(float logprob) {
  if (!std::isfinite(logprob) || logprob < -9999.0f) return "-9999.0";
  return fmt::format("{}", logprob);
}

std::string json_usage(const Usage& usage) {
  return fmt::format(
      R"({{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{},"prompt_tokens_details":{{"cached_tokens":{}}}}})",
      usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens,
      usage.cached_tokens);
}

std::string json_chat_logprobs(const Tokenizer& tokenizer, const std::vector<OutputToken>& tokens) {
  std::string out = R"({"content":[)";
  for (size_t i = 0; i < tokens.size(); ++i) {
    out += i ? ",{" : "{";
    append_chat_token(out, tokenizer, tokens[i].id, tokens[i].logprob);
    out += R"(,"top_logprobs":[)";
    for (size_t k = 0; k < tokens[i].top.size(); ++k) {
      out += k ? ",{" : "{";
      append_chat_token(out, tokenizer, tokens[i].top[k].token, tokens[i].top[k].logprob);
      out += '}';
    }
    out += "]}";
  }
  return out + R"(],"refusal":null})";
}

int64_t count_characters(std::string_view bytes) {
  int64_t count = 0;
  for (const char c : bytes) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

std::string json_completion_logprobs(const Tokenizer& tokenizer, const std::vector<OutputToken>& tokens,
                                     int64_t& offset) {
  std::string names, logprobs, tops, offsets;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const OutputToken& token = tokens[i];
    const char* comma = i ? "," : "";
    const std::string_view bytes = tokenizer.bytes(token.id);
    fmt::format_to(std::back_inserter(names), "{}{}", comma, json_string(completion_token(bytes)));
    fmt::format_to(std::back_inserter(logprobs), "{}{}", comma, json_logprob(token.logprob));
    fmt::format_to(std::back_inserter(offsets), "{}{}", comma, offset);
    fmt::format_to(std::back_inserter(tops), "{}{{", comma);
    bool first = true, chosen = false;
    const auto add = [&](int32_t id, float logprob) {
      fmt::format_to(std::back_inserter(tops), "{}{}:{}", first ? "" : ",",
                     json_string(completion_token(tokenizer.bytes(id))), json_logprob(logprob));
      first = false;
      chosen |= id == token.id;
    };
    for (const TokenLogprob& top : token.top) add(top.token, top.logprob);
    if (!chosen) add(token.id, token.logprob);
    tops += '}';
    offset += count_characters(bytes);
  }
  return fmt::format(R"({{"tokens":[{}],"token_logprobs":[{}],"top_logprobs":[{}],"text_offset":[{}]}})",
                     names, logprobs, tops, offsets);
}

}  // namespace deepinfer::server
