#include "tune/workload.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <ctime>
#include <random>

#include "base/check.h"
#include "base/json_file.h"
#include "base/shown.h"

namespace deepinfer::tune {

namespace json = boost::json;

namespace {

constexpr uint64_t kSeed = 20240101;
constexpr uint64_t kMaxFileBytes = uint64_t{256} << 20;
constexpr int kFileConcurrency = 32;  // --concurrency says otherwise
constexpr int64_t kMaxTokens = 1 << 30;

struct Named {
  const char* name;
  int cpu_concurrency, gpu_concurrency;
  bool steady;
  int shared_prefix;
  Lengths prompt, answer;
};

// chat: short questions behind one system message. batch: a file of jobs, all there at the start.
// long-context: questions about documents.
constexpr Named kNamed[] = {
    {"chat", 16, 256, true, 64, {220, 0.7, 80, 1024}, {128, 0.6, 16, 512}},
    {"batch", 64, 1024, false, 0, {256, 0.6, 32, 2048}, {96, 0.5, 8, 256}},
    {"long-context", 2, 16, true, 0, {6000, 0.3, 3000, 12000}, {96, 0.5, 16, 256}},
};

int draw(const Lengths& l, std::mt19937_64& random) {
  const double length = std::lognormal_distribution<double>(std::log(l.median), l.spread)(random);
  return static_cast<int>(std::clamp<double>(length, l.low, l.high));
}

void add_random(int count, int vocab_size, std::mt19937_64& random, std::vector<int32_t>& out) {
  std::uniform_int_distribution<int32_t> token(0, vocab_size - 1);
  for (int i = 0; i < count; ++i) out.push_back(token(random));
}

}  // namespace

const std::vector<std::string_view>& Workload::names() {
  static const std::vector<std::string_view> names = [] {
    std::vector<std::string_view> out;
    for (const Named& n : kNamed) out.emplace_back(n.name);
    return out;
  }();
  return names;
}

Result<Workload> Workload::named(const std::string& name, bool gpu, int vocab_size, int max_model_len) {
  const auto* it =
      std::find_if(std::begin(kNamed), std::end(kNamed), [&](const Named& n) { return name == n.name; });
  if (it == std::end(kNamed))
    return make_error(ErrorCode::kConfig, "--workload: got '{}', expected {}, or a file of requests",
                      shown(name), fmt::join(names(), ", "));
  Workload w;
  w.name_ = it->name;
  w.concurrency_ = gpu ? it->gpu_concurrency : it->cpu_concurrency;
  w.steady_ = it->steady;
  w.vocab_size_ = vocab_size;
  w.max_model_len_ = max_model_len;
  w.prompt_ = it->prompt;
  w.answer_ = it->answer;
  // A shorter context: everything shrinks with it.
  const double room = max_model_len;
  const double scale = std::min(1.0, room / (it->prompt.high + it->answer.high));
  for (Lengths* l : {&w.prompt_, &w.answer_}) {
    l->median = std::max(1.0, l->median * scale);
    l->low = std::max(1, static_cast<int>(l->low * scale));
    l->high = std::max(1, static_cast<int>(l->high * scale));
  }
  w.shared_prefix_ = std::min(it->shared_prefix, w.prompt_.low - 1);
  return w;
}

std::string Workload::text() const {
  std::string what = fmt::format("{}: {} requests at a time, ", name_, concurrency_);
  if (!lines_.empty()) return what + fmt::format("{} of them in the file", lines_.size());
  what += fmt::format("prompts of {} to {} tokens, answers of {} to {}", prompt_.low, prompt_.high,
                      answer_.low, answer_.high);
  return shared_prefix_ > 0 ? what + fmt::format(", {} tokens in front of all", shared_prefix_) : what;
}

EngineRequest Workload::request(size_t index) const {
  std::mt19937_64 random(kSeed + index);
  EngineRequest out;
  out.sampling = {.temperature = 0};
  if (lines_.empty()) {
    const int length = draw(prompt_, random);
    std::mt19937_64 prefix(kSeed - 1);
    add_random(shared_prefix_, vocab_size_, prefix, out.prompt);
    add_random(length - shared_prefix_, vocab_size_, random, out.prompt);
    out.sampling.max_tokens = draw(answer_, random);
    out.sampling.ignore_eos = true;
  } else {
    const Line& line = lines_[index % lines_.size()];
    out.prompt = line.prompt;
    if (line.prompt.empty()) add_random(line.random, vocab_size_, random, out.prompt);
    out.sampling.max_tokens = line.max_tokens;
    out.sampling.ignore_eos = line.prompt.empty();
    // The same line again is another request: its prompt is not in the cache.
    out.cache_salt = std::to_string(index / lines_.size());
  }
  if (steady_ && index < static_cast<size_t>(concurrency_)) {
    const double share = std::uniform_real_distribution<double>(0.2, 1.0)(random);
    out.sampling.max_tokens = std::max(1, static_cast<int>(out.sampling.max_tokens * share));
  }
  return out;
}

// Reads the lines of a file into a Workload.
class FileReader {
 public:
  FileReader(const Tokenizer& tokenizer, const ChatTemplate* chat_template, Workload& out)
      : tokenizer_(tokenizer), template_(chat_template), out_(out) {}

  Result<void> add(std::string_view text, const std::string& where) {
    DI_ASSIGN(const json::value value, as_config(parse_json(text, where)));
    if (!value.is_object()) return make_error(ErrorCode::kConfig, "{}: expected a JSON object", where);
    const JsonObject outer(value.get_object(), where);
    DI_ASSIGN(const auto body, as_config(outer.object("body")));
    Workload::Line line;
    DI_TRY(read(body ? *body : outer, line));
    const int tokens = line.prompt.empty() ? line.random : static_cast<int>(line.prompt.size());
    const int room = out_.max_model_len_ - tokens;
    if (room < 1)
      return make_error(ErrorCode::kConfig, "{}: a prompt of {} tokens, expected less than the context of {}",
                        where, tokens, out_.max_model_len_);
    line.max_tokens = std::min(line.max_tokens, room);
    out_.lines_.push_back(std::move(line));
    return {};
  }

 private:
  template <class T>
  static Result<T> as_config(Result<T> result) {
    if (!result) return Error{ErrorCode::kConfig, result.error().message, {}};
    return result;
  }

  Result<void> read(const JsonObject& o, Workload::Line& line) {
    DI_ASSIGN(auto max_tokens, as_config(o.integer("max_tokens", 1, kMaxTokens)));
    if (!max_tokens) {
      DI_ASSIGN(max_tokens, as_config(o.integer("max_completion_tokens", 1, kMaxTokens)));
    }
    line.max_tokens = static_cast<int>(max_tokens.value_or(128));
    DI_ASSIGN(const auto random, as_config(o.integer("prompt_tokens", 1, kMaxTokens)));
    if (random) {
      line.random = static_cast<int>(*random);
      return {};
    }
    if (const json::value* prompt = o.find("prompt")) return take_prompt(*prompt, o.name(), line);
    if (const json::value* messages = o.find("messages")) return take_messages(*messages, o.name(), line);
    return make_error(ErrorCode::kConfig, "{}: expected prompt_tokens, prompt or messages", o.name());
  }

  Result<void> take_prompt(const json::value& prompt, const std::string& where, Workload::Line& line) {
    if (prompt.is_string()) {
      line.prompt = tokenizer_.encode(prompt.get_string());
      if (tokenizer_.add_bos() && tokenizer_.bos())
        line.prompt.insert(line.prompt.begin(), *tokenizer_.bos());
    } else if (prompt.is_array()) {
      for (const json::value& id : prompt.get_array()) {
        if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() >= out_.vocab_size_)
          return make_error(ErrorCode::kConfig, "{}: prompt: expected a text or token ids from 0 to {}",
                            where, out_.vocab_size_ - 1);
        line.prompt.push_back(static_cast<int32_t>(id.get_int64()));
      }
    }
    if (line.prompt.empty())
      return make_error(ErrorCode::kConfig, "{}: prompt: expected a text or a list of token ids, not empty",
                        where);
    return {};
  }

  Result<void> take_messages(const json::value& messages, const std::string& where, Workload::Line& line) {
    if (!messages.is_array() || messages.get_array().empty())
      return make_error(ErrorCode::kConfig, "{}: messages: expected a list with a message", where);
    if (template_ == nullptr)
      return make_error(ErrorCode::kConfig, "{}: messages, but the model has no chat template: use prompt",
                        where);
    TemplateInput input{.messages = messages.get_array(), .now = std::time(nullptr)};
    if (tokenizer_.bos()) input.bos_token = tokenizer_.bytes(*tokenizer_.bos());
    const std::vector<int32_t> ends = tokenizer_.end_ids();
    if (!ends.empty()) input.eos_token = tokenizer_.bytes(ends.front());
    const Result<RenderedPrompt> prompt = template_->render(input);
    if (!prompt) return make_error(ErrorCode::kConfig, "{}: {}", where, prompt.error().message);
    line.prompt = tokenizer_.encode(prompt->text, prompt->trusted);
    return {};
  }

  const Tokenizer& tokenizer_;
  const ChatTemplate* template_;
  Workload& out_;
};

Result<Workload> Workload::from_file(const std::filesystem::path& file, const Tokenizer& tokenizer,
                                     const ChatTemplate* chat_template, int vocab_size, int max_model_len) {
  const Result<std::string> text = read_file(file, kMaxFileBytes);
  if (!text) return make_error(ErrorCode::kConfig, "--workload: {}", text.error().message);
  Workload w;
  w.name_ = file.filename().string();
  w.concurrency_ = kFileConcurrency;
  w.vocab_size_ = vocab_size;
  w.max_model_len_ = max_model_len;
  FileReader reader(tokenizer, chat_template, w);
  int number = 0;
  for (size_t at = 0; at < text->size();) {
    const size_t end = std::min(text->find('\n', at), text->size());
    const std::string_view line = std::string_view(*text).substr(at, end - at);
    at = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    DI_TRY(reader.add(line, fmt::format("{}:{}", file.string(), number)));
  }
  if (w.lines_.empty())
    return make_error(ErrorCode::kConfig, "--workload: {}: no request in it", file.string());
  return w;
}

}  // namespace deepinfer::tune
