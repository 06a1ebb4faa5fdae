#include "server/answer.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <functional>
#include <iterator>
#include <optional>
#include <utility>

#include "base/log.h"
#include "server/api_error.h"
#include "server/auth.h"
#include "server/request_record.h"
#include "server/server.h"
#include "server/sse.h"

namespace deepinfer::server {

namespace asio = boost::asio;

namespace {

constexpr size_t kLargePrompts = 4096;  // tokens

// As long as this lives, the client's leaving cancels.
class DisconnectGuard {
 public:
  DisconnectGuard(HttpExchange& exchange, Generation& generation) : exchange_(exchange) {
    exchange.on_disconnect([&generation] {
      generation.cancel();
      generation.wake();
    });
  }
  ~DisconnectGuard() { exchange_.on_disconnect(nullptr); }
  DisconnectGuard(const DisconnectGuard&) = delete;

 private:
  HttpExchange& exchange_;
};

HttpReply stream_head() {
  HttpReply head;
  head.content_type = "text/event-stream";
  head.fields = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
  return head;
}

ApiError logged(const Error& error, const HttpExchange& exchange) {
  if (error.code == ErrorCode::kInternal)
    log_with(log::level::err, exchange.record ? exchange.record->ids() : LogFields(),
             fmt::format("a request failed: {}", error.message));
  return to_api_error(error);
}

ApiError stalled(Generation& generation, const HttpExchange& exchange) {
  generation.fail();
  log_with(log::level::err, exchange.record ? exchange.record->ids() : LogFields(),
           "a request failed: the engine does not answer (server.stall_timeout)");
  return stalled_error();
}

std::string events_of(const std::vector<ChoiceUpdate>& updates, const std::vector<PromptTokens>& prompts,
                      int n, ReplyFormat& format) {
  std::string events;
  for (const ChoiceUpdate& update : updates)
    events += format.update(update, prompts.at(static_cast<size_t>(update.index / n)));
  return events;
}

// In all prompts, for each choice.
size_t tokens_of(const Prepared& prepared) {
  size_t tokens = 0;
  for (const auto& prompt : prepared.prompts) tokens += prompt.size();
  return tokens * static_cast<size_t>(prepared.request.sampling.n);
}

asio::awaitable<std::string> written(const AnswerContext& context, size_t bytes,
                                     std::function<std::string()> write) {
  if (bytes < kLargeReply) co_return write();
  co_return co_await context.text_pool.run_accepted<std::string>(std::move(write));
}

enum class Wake : uint8_t { kNews, kNothing, kStalled };

// Waits for the engine's news. They say that it lives: only where none come, it is asked for its heartbeat.
class Watch {
 public:
  Watch(const AnswerContext& context, Generation& generation)
      : engine_(*context.llm.engine), limit_(context.stall_timeout), generation_(generation) {
    (void)look();
  }

  // kNothing: no news for `time`. A client's leaving counts as news.
  asio::awaitable<Wake> wait(std::optional<std::chrono::milliseconds> time) {
    for (;;) {
      const bool looks = limit_ > 0 && (!time || left_ < *time);
      const auto step = looks ? std::optional(left_) : time;
      if (co_await generation_.wait(step)) {
        left_ = to_milliseconds(limit_);
        co_return Wake::kNews;
      }
      if (look()) co_return Wake::kStalled;
      if (!looks) co_return Wake::kNothing;
      if (time) *time -= *step;
    }
  }

 private:
  // Whether it has stalled; when not, after `left_` it may have.
  bool look() {
    if (limit_ <= 0) return false;
    const double age = engine_.stats().seconds_since_heartbeat;
    left_ = std::max(to_milliseconds(limit_ - age), std::chrono::milliseconds(1));
    return age > limit_;
  }

  const Engine& engine_;
  const double limit_;
  Generation& generation_;
  std::chrono::milliseconds left_{1};
};

asio::awaitable<void> answer_whole(HttpExchange& exchange, const AnswerContext& context,
                                   const Prepared& prepared, Generation& generation, ReplyFormat& format) {
  std::vector<ChoiceUpdate> choices(static_cast<size_t>(generation.choices()));
  Watch watch(context, generation);
  while (!generation.done()) {
    const Wake wake = co_await watch.wait(std::nullopt);
    if (exchange.disconnected()) co_return;
    if (wake == Wake::kStalled) {
      co_await exchange.reply(error_reply(stalled(generation, exchange)));
      co_return;
    }
    auto updates = generation.take();
    if (!updates) {
      co_await exchange.reply(error_reply(logged(updates.error(), exchange)));
      co_return;
    }
    gather(choices, std::move(*updates));
  }
  if (exchange.disconnected()) co_return;
  auto prompts = generation.take_prompt_logprobs();
  const size_t bytes = about_bytes(prepared, choices, prompts, true);
  // What it was made of takes its time to be freed as well.
  const auto write = [&format, &choices, &prompts, usage = generation.usage()] {
    std::string body = format.whole(choices, prompts, usage);
    choices = {};
    prompts = {};
    return body;
  };
  co_await exchange.reply({200, co_await written(context, bytes, write)});
}

// The status goes out when the engine has begun: until then a failure still gets its own.
asio::awaitable<void> answer_stream(HttpExchange& exchange, const AnswerContext& context,
                                    const Prepared& prepared, Generation& generation, ReplyFormat& format) {
  const int n = prepared.request.sampling.n;
  bool open = false;
  Watch watch(context, generation);
  while (!generation.done()) {
    const Wake wake = co_await watch.wait(open ? std::optional(context.ping) : std::nullopt);
    if (exchange.disconnected()) co_return;
    if (wake == Wake::kNothing) {
      co_await exchange.send(kSsePing);
      continue;
    }
    std::optional<ApiError> error;
    std::vector<ChoiceUpdate> updates;
    if (wake == Wake::kStalled) {
      error = stalled(generation, exchange);
    } else if (auto taken = generation.take()) {
      updates = std::move(*taken);
    } else {
      error = logged(taken.error(), exchange);
    }
    if (error && !open) {
      co_await exchange.reply(error_reply(*error));
      co_return;
    }
    if (error) {
      co_await exchange.send(sse_event(error_body(*error)).append(kSseDone));
      break;
    }
    std::string events;
    if (!open && (generation.scheduled() || !updates.empty())) {
      open = co_await exchange.start_stream(stream_head());
      if (!open) co_return;
      events = format.opening();
    }
    const bool done = generation.done();
    const size_t bytes = about_bytes(prepared, updates, generation.prompt_logprobs(), false);
    const auto write = [&] { return events_of(updates, generation.prompt_logprobs(), n, format); };
    if (bytes < kLargeReply)  // as written() does, without its price for each token
      events += write();
    else
      events += co_await written(context, bytes, write);
    if (done && prepared.request.include_usage) events += format.usage(generation.usage());
    if (done) events += kSseDone;
    co_await exchange.send(events);
  }
  if (!exchange.disconnected()) co_await exchange.end_stream();
}

asio::awaitable<void> answer_nothing(HttpExchange& exchange, const AnswerContext& context,
                                     const Prepared& prepared, ReplyFormat& format) {
  const WholeAnswer all = empty_answer(prepared);
  const size_t bytes = about_bytes(prepared, all.choices, all.prompts, true);
  if (!prepared.request.stream) {
    const auto write = [&] { return format.whole(all.choices, all.prompts, all.usage); };
    co_await exchange.reply({200, co_await written(context, bytes, write)});
    co_return;
  }
  if (!co_await exchange.start_stream(stream_head())) co_return;
  std::string events = format.opening();
  events += co_await written(context, bytes, [&] {
    return events_of(all.choices, all.prompts, prepared.request.sampling.n, format);
  });
  if (prepared.request.include_usage) events += format.usage(all.usage);
  co_await exchange.send(events.append(kSseDone));
  co_await exchange.end_stream();
}

}  // namespace

ReplyOptions reply_options(const Prepared& prepared, Form form, ReplyHead head) {
  const GenerationRequest& request = prepared.request;
  ReplyOptions options{.head = std::move(head),
                       .n = request.sampling.n,
                       .logprobs = request.logprobs,
                       .echo_logprobs = form == kCompletion && request.echo && request.logprobs,
                       .prompt_logprobs = request.sampling.prompt_logprobs >= 0,
                       .token_ids = request.return_token_ids,
                       .tokens_as_token_ids = request.return_tokens_as_token_ids,
                       .include_usage = request.include_usage,
                       .continuous_usage = request.continuous_usage,
                       .prompts = {}};
  const bool ids = options.token_ids || options.echo_logprobs;
  for (size_t i = 0; i < prepared.prompts.size(); ++i)
    options.prompts.push_back({prepared.echo.empty() ? std::string() : prepared.echo[i],
                               ids ? prepared.prompts[i] : std::vector<int32_t>()});
  return options;
}

std::unique_ptr<ReplyFormat> reply_format(const Prepared& prepared, Form form, const Llm& llm) {
  const std::string& id = prepared.request.request_id;
  ReplyHead head{(form == kChat ? "chatcmpl-" : "cmpl-") + (id.empty() ? random_hex(16) : id),
                 static_cast<int64_t>(std::time(nullptr)), prepared.model, llm.fingerprint};
  ReplyOptions options = reply_options(prepared, form, std::move(head));
  return form == kChat ? make_chat_format(std::move(options), *llm.tokenizer)
                       : make_completion_format(std::move(options), *llm.tokenizer);
}

bool generates_nothing(const Prepared& prepared) {
  return prepared.max_tokens == 0 && prepared.request.sampling.prompt_logprobs < 0;
}

WholeAnswer empty_answer(const Prepared& prepared) {
  WholeAnswer all;
  const int n = prepared.request.sampling.n;
  for (const auto& prompt : prepared.prompts) {
    const auto tokens = static_cast<int64_t>(prompt.size());
    all.usage.prompt_tokens += tokens;
    for (int i = 0; i < n; ++i) {
      ChoiceUpdate update{.index = static_cast<int>(all.choices.size()), .first = true, .finish = "length"};
      update.usage.prompt_tokens = tokens;
      all.choices.push_back(std::move(update));
    }
  }
  all.prompts.resize(prepared.prompts.size());
  return all;
}

void gather(std::vector<ChoiceUpdate>& choices, std::vector<ChoiceUpdate> updates) {
  for (ChoiceUpdate& update : updates) {
    ChoiceUpdate& choice = choices.at(static_cast<size_t>(update.index));
    choice.index = update.index;
    choice.text += update.text;
    std::move(update.tokens.begin(), update.tokens.end(), std::back_inserter(choice.tokens));
    choice.ids.insert(choice.ids.end(), update.ids.begin(), update.ids.end());
    if (update.finish.empty()) continue;
    choice.finish = update.finish;
    choice.stop_text = std::move(update.stop_text);
    choice.stop_id = update.stop_id;
  }
}

size_t about_bytes(const Prepared& prepared, const std::vector<ChoiceUpdate>& choices,
                   const std::vector<PromptTokens>& prompts, bool whole) {
  constexpr size_t kEntry = 50, kId = 6, kChoice = 200;  // bytes of JSON
  const GenerationRequest& request = prepared.request;
  // All tokens of an answer have as many alternatives, but for some ends.
  const auto scores = [](const std::vector<OutputToken>& tokens) {
    return tokens.empty() ? 0 : tokens.size() * (1 + tokens.front().top.size()) * kEntry;
  };
  size_t bytes = 0;
  for (const ChoiceUpdate& choice : choices) {
    bytes += kChoice + choice.text.size() + choice.ids.size() * kId + scores(choice.tokens);
    if (!whole && !choice.first) continue;
    const auto prompt = static_cast<size_t>(choice.index / request.sampling.n);
    if (!prepared.echo.empty()) bytes += prepared.echo.at(prompt).size();
    if (request.return_token_ids) bytes += prepared.prompts.at(prompt).size() * kId;
    bytes += scores(prompts.at(prompt));
  }
  return bytes;
}

asio::awaitable<void> answer(HttpExchange& exchange, const AnswerContext& context, const Prepared& prepared,
                             ReplyFormat& format) {
  if (generates_nothing(prepared)) {
    co_await answer_nothing(exchange, context, prepared, format);
    co_return;
  }
  Generation generation(context.llm, prepared.request, exchange.executor());
  generation.report_to(exchange.record);
  // Keys of the prefix cache, and a copy for each choice.
  const auto submit = [&] { return generation.submit(prepared.prompts, prepared.max_tokens); };
  Result<void> submitted;
  if (tokens_of(prepared) < kLargePrompts)
    submitted = submit();
  else
    submitted = co_await context.text_pool.run_accepted<Result<void>>(submit);
  if (!submitted) {
    co_await exchange.reply(error_reply(logged(submitted.error(), exchange)));
    co_return;
  }
  const DisconnectGuard guard(exchange, generation);
  if (prepared.request.stream)
    co_await answer_stream(exchange, context, prepared, generation, format);
  else
    co_await answer_whole(exchange, context, prepared, generation, format);
}

}  // namespace deepinfer::server
