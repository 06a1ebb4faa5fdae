#include "server/batch.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "server/answer.h"
#include "server/api_error.h"
#include "server/auth.h"
#include "server/fields.h"
#include "server/openai.h"
#include "server/reply_json.h"

namespace deepinfer::server {

namespace asio = boost::asio;
namespace json = boost::json;

namespace {

constexpr std::string_view kChatUrl = "/v1/chat/completions", kCompletionUrl = "/v1/completions";
constexpr size_t kIdBytes = 12;  // of the results' ids

// Half of what a server has: the engine has the rest.
int text_threads() {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()) / 8, 1, 4);
}

BatchFault fault(std::string code, std::string message) {
  return {std::move(code), std::move(message)};
}

// A field that has to be one of these words.
std::optional<BatchFault> check_word(const json::object& line, std::string_view name, std::string_view code,
                                     const std::vector<std::string_view>& words) {
  const json::value* value = line.if_contains(name);
  const std::string expected = fmt::format("\"{}\"", fmt::join(words, "\" or \""));
  if (!value)
    return fault("missing_required_parameter", fmt::format("{}: missing, expected {}", name, expected));
  if (value->is_string() &&
      std::find(words.begin(), words.end(), std::string_view(value->get_string())) != words.end())
    return {};
  return fault(std::string(code), fmt::format("{}: got {}, expected {}", name, shown(*value), expected));
}

std::optional<BatchFault> check_custom_id(const json::object& line) {
  const json::value* id = line.if_contains("custom_id");
  if (!id)
    return fault("missing_required_parameter",
                 "custom_id: missing, expected a string that no other line has");
  if (id->is_string()) return {};
  return fault("invalid_custom_id", fmt::format("custom_id: got {}, expected a string", shown(*id)));
}

std::string result_line(const std::optional<std::string>& custom_id, std::string_view response,
                        std::string_view error) {
  return fmt::format("{}{}\",\"custom_id\":{},\"response\":{},\"error\":{}}}\n", kResultStart,
                     random_hex(kIdBytes), custom_id ? json_string(*custom_id) : "null", response, error);
}

}  // namespace

BatchRequest parse_batch_line(const LineReader::Line& line) {
  BatchRequest request;
  if (line.too_long) {
    request.body = fault("line_too_long", fmt::format("the line has {} bytes, more than "
                                                      "server.max_body_bytes allows a request",
                                                      line.bytes));
    return request;
  }
  auto parsed = parse_body(line.text, "the line");
  if (!parsed) {
    request.body = fault("invalid_json_line", parsed.error().message);
    return request;
  }
  auto bad = check_custom_id(*parsed);
  if (!bad) request.custom_id = std::string(parsed->at("custom_id").get_string());
  if (!bad) bad = check_word(*parsed, "method", "invalid_method", {"POST"});
  if (!bad) bad = check_word(*parsed, "url", "invalid_url", {kChatUrl, kCompletionUrl});
  json::value* body = parsed->if_contains("body");
  if (!bad && !(body && body->is_object()))
    bad = body ? fault("invalid_body", fmt::format("body: got {}, expected a JSON object", shown(*body)))
               : fault("missing_required_parameter", "body: missing, expected the request's JSON object");
  if (bad) {
    request.body = std::move(*bad);
    return request;
  }
  request.form = parsed->at("url").get_string() == kCompletionUrl ? kCompletion : kChat;
  request.body = std::move(body->get_object());
  return request;
}

std::string batch_reply(const std::optional<std::string>& custom_id, int status, std::string_view body) {
  return result_line(
      custom_id,
      fmt::format(R"({{"status_code":{},"request_id":"{}","body":{}}})", status, random_hex(kIdBytes), body),
      "null");
}

std::string batch_failure(const std::optional<std::string>& custom_id, const BatchFault& fault) {
  return result_line(
      custom_id, "null",
      fmt::format(R"({{"code":{},"message":{}}})", json_string(fault.code), json_string(fault.message)));
}

// A line, ready to be generated or found wrong.
struct Batch::Ready {
  std::optional<std::string> custom_id;
  Form form = kChat;
  std::variant<Prepared, Error, BatchFault> request;
};

struct Batch::Answer {
  std::optional<std::string> custom_id;
  int status = 0;  // 0: `fault` says why there is none
  std::string body;
  BatchFault fault;
  std::string failure;  // for people; empty: it succeeded
  int64_t tokens = 0;

  void fail(const Error& error) {
    const ApiError told = to_api_error(error);
    status = told.status;
    body = error_body(told);
    failure = error.message;
  }
};

Batch::Batch(Llm& llm, const Config& config, BatchFiles files, asio::io_context& io, int window)
    : llm_(llm),
      config_(config),
      files_(std::move(files)),
      io_(io),
      window_(window),
      text_pool_(text_threads(), window) {
  progress_.requests = files_.plan.requests;
  progress_.before = files_.plan.done;
}

void Batch::start(std::function<void()> on_end) {
  on_end_ = std::move(on_end);
  workers_ = window_;
  for (int i = 0; i < window_; ++i) asio::co_spawn(io_, work(), asio::detached);
}

void Batch::stop(std::optional<Error> why) {
  if (stopped_) return;
  stopped_ = true;
  error_ = std::move(why);
  for (Generation* generation : running_) {
    generation->cancel();
    generation->wake();
  }
}

Result<std::optional<LineReader::Line>> Batch::next_line() {
  for (;;) {
    DI_ASSIGN(auto line, files_.input.next());
    // A file that grew since it was read first: what came is left out.
    if (!line || static_cast<size_t>(line->number) >= files_.plan.skipped.size())
      return std::optional<LineReader::Line>();
    if (!files_.plan.skipped[static_cast<size_t>(line->number)]) return line;
  }
}

asio::awaitable<void> Batch::work() {
  while (!stopped_) {
    auto line = next_line();
    if (!line) stop(line.error());
    if (!line || !*line) break;
    const int64_t number = (*line)->number;
    Answer result = co_await answer(std::move(**line));
    if (!stopped_) record(number, result);
  }
  if (--workers_ > 0) co_return;
  text_pool_.join();
  files_.output.sync();
  on_end_();
}

// On the text pool.
Batch::Ready Batch::read(const LineReader::Line& line) const {
  BatchRequest request = parse_batch_line(line);
  Ready ready{std::move(request.custom_id), request.form, Error{}};
  if (auto* bad = std::get_if<BatchFault>(&request.body)) {
    ready.request = std::move(*bad);
    return ready;
  }
  auto prepared = prepare(std::get<json::object>(request.body), request.form, llm_, config_);
  if (!prepared)
    ready.request = std::move(prepared).error();
  else if (prepared->request.stream)
    ready.request = Error{ErrorCode::kInvalidArgument,
                          "stream: got true, but the answers of a batch are whole; leave it out", "stream"};
  else
    ready.request = std::move(*prepared);
  return ready;
}

asio::awaitable<Batch::Answer> Batch::answer(LineReader::Line line) {
  Answer out;
  try {
    const Ready ready =
        co_await text_pool_.run_accepted<Ready>([this, line = std::move(line)] { return read(line); });
    out.custom_id = ready.custom_id;
    if (const auto* bad = std::get_if<BatchFault>(&ready.request)) {
      out.fault = *bad;
      out.failure = bad->message;
    } else if (const auto* error = std::get_if<Error>(&ready.request)) {
      out.fail(*error);
    } else if (!stopped_) {
      co_await generate(ready, out);
    }
  } catch (const std::exception& thrown) {
    out.fail({ErrorCode::kInternal, thrown.what(), {}});
  }
  co_return out;
}

asio::awaitable<void> Batch::generate(const Ready& ready, Answer& answer) {
  const Prepared& prepared = std::get<Prepared>(ready.request);
  const auto format = reply_format(prepared, ready.form, llm_);
  WholeAnswer all;
  if (generates_nothing(prepared)) {
    all = empty_answer(prepared);
  } else {
    Generation generation(llm_, prepared.request, io_.get_executor());
    if (const auto submitted = generation.submit(prepared.prompts, prepared.max_tokens); !submitted) {
      answer.fail(submitted.error());
      co_return;
    }
    struct Registered {
      std::set<Generation*>& all;
      Generation* one;
      ~Registered() { all.erase(one); }
    };
    running_.insert(&generation);
    const Registered registered{running_, &generation};
    all.choices.resize(static_cast<size_t>(generation.choices()));
    while (!generation.done()) {
      co_await generation.wait(std::nullopt);
      auto updates = generation.take();
      if (!updates) {
        answer.fail(updates.error());
        co_return;
      }
      gather(all.choices, std::move(*updates));
    }
    if (stopped_) co_return;
    all.prompts = generation.take_prompt_logprobs();
    all.usage = generation.usage();
  }
  const auto write = [&] { return format->whole(all.choices, all.prompts, all.usage); };
  const bool large = about_bytes(prepared, all.choices, all.prompts, true) >= kLargeReply;
  answer.body = large ? co_await text_pool_.run_accepted<std::string>(write) : write();
  answer.status = 200;
  answer.tokens = all.usage.completion_tokens;
}

void Batch::record(int64_t line, const Answer& answer) {
  const bool failed = !answer.failure.empty();
  const std::string text = answer.status == 0 ? batch_failure(answer.custom_id, answer.fault)
                                              : batch_reply(answer.custom_id, answer.status, answer.body);
  if (const auto written = (failed ? files_.errors : files_.output).append(text); !written) {
    stop(written.error());
    return;
  }
  if (!failed) {
    ++progress_.succeeded;
    progress_.completion_tokens += answer.tokens;
    return;
  }
  ++progress_.failed;
  if (answer.status >= 500) log::error("line {} failed: {}", line, answer.failure);
  if (progress_.first_failure.empty())
    progress_.first_failure = fmt::format("line {}: {}", line, answer.failure);
}

}  // namespace deepinfer::server
