#include "server/answer.h"

#include <fmt/format.h>

#include "base/log.h"
#include "server/api_error.h"
#include "server/request_record.h"
#include "server/sse.h"

namespace deepinfer::server {

namespace asio = boost::asio;

namespace {

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

// Nothing is generated and nothing is scored.
std::vector<ChoiceUpdate> empty_answers(const Prepared& prepared) {
  std::vector<ChoiceUpdate> updates;
  const int n = prepared.request.sampling.n;
  for (size_t i = 0; i < prepared.prompts.size() * static_cast<size_t>(n); ++i) {
    ChoiceUpdate update{.index = static_cast<int>(i), .first = true, .finish = "length"};
    update.usage.prompt_tokens = static_cast<int64_t>(prepared.prompts[i / static_cast<size_t>(n)].size());
    updates.push_back(std::move(update));
  }
  return updates;
}

Usage empty_usage(const Prepared& prepared) {
  Usage usage;
  for (const auto& prompt : prepared.prompts) usage.prompt_tokens += static_cast<int64_t>(prompt.size());
  return usage;
}

void add(std::vector<ChoiceUpdate>& choices, std::vector<ChoiceUpdate> updates) {
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

asio::awaitable<void> answer_whole(HttpExchange& exchange, Generation& generation, ReplyFormat& format) {
  std::vector<ChoiceUpdate> choices(static_cast<size_t>(generation.choices()));
  while (!generation.done()) {
    co_await generation.wait(std::nullopt);
    if (exchange.disconnected()) co_return;
    auto updates = generation.take();
    if (!updates) {
      co_await exchange.reply(error_reply(logged(updates.error(), exchange)));
      co_return;
    }
    add(choices, std::move(*updates));
  }
  if (exchange.disconnected()) co_return;
  co_await exchange.reply({200, format.whole(choices, generation.prompt_logprobs(), generation.usage())});
}

// The status goes out when the engine has begun: until then a failure still gets its own.
asio::awaitable<void> answer_stream(HttpExchange& exchange, Generation& generation, ReplyFormat& format,
                                    const GenerationRequest& request, std::chrono::milliseconds ping) {
  const int n = request.sampling.n;
  bool open = false;
  while (!generation.done()) {
    const bool news = co_await generation.wait(open ? std::optional(ping) : std::nullopt);
    if (exchange.disconnected()) co_return;
    if (!news) {
      co_await exchange.send(kSsePing);
      continue;
    }
    auto updates = generation.take();
    if (!updates) {
      const ApiError error = logged(updates.error(), exchange);
      if (!open) {
        co_await exchange.reply(error_reply(error));
        co_return;
      }
      co_await exchange.send(sse_event(error_body(error)).append(kSseDone));
      break;
    }
    std::string events;
    if (!open && (generation.scheduled() || !updates->empty())) {
      open = co_await exchange.start_stream(stream_head());
      if (!open) co_return;
      events = format.opening();
    }
    for (const ChoiceUpdate& update : *updates)
      events += format.update(update, generation.prompt_logprobs().at(static_cast<size_t>(update.index / n)));
    if (generation.done() && request.include_usage) events += format.usage(generation.usage());
    if (generation.done()) events += kSseDone;
    co_await exchange.send(events);
  }
  if (!exchange.disconnected()) co_await exchange.end_stream();
}

asio::awaitable<void> answer_nothing(HttpExchange& exchange, const Prepared& prepared, ReplyFormat& format) {
  auto updates = empty_answers(prepared);
  const Usage usage = empty_usage(prepared);
  if (!prepared.request.stream) {
    std::vector<ChoiceUpdate> choices(updates.size());
    add(choices, std::move(updates));
    co_await exchange.reply(
        {200, format.whole(choices, std::vector<PromptTokens>(prepared.prompts.size()), usage)});
    co_return;
  }
  if (!co_await exchange.start_stream(stream_head())) co_return;
  std::string events = format.opening();
  for (const ChoiceUpdate& update : updates) events += format.update(update, {});
  if (prepared.request.include_usage) events += format.usage(usage);
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

asio::awaitable<void> answer(HttpExchange& exchange, Llm& llm, const Prepared& prepared, ReplyFormat& format,
                             std::chrono::milliseconds ping) {
  if (prepared.max_tokens == 0 && prepared.request.sampling.prompt_logprobs < 0) {
    co_await answer_nothing(exchange, prepared, format);
    co_return;
  }
  Generation generation(llm, prepared.request, exchange.executor());
  generation.report_to(exchange.record);
  if (const auto submitted = generation.submit(prepared.prompts, prepared.max_tokens); !submitted) {
    co_await exchange.reply(error_reply(logged(submitted.error(), exchange)));
    co_return;
  }
  const DisconnectGuard guard(exchange, generation);
  if (prepared.request.stream)
    co_await answer_stream(exchange, generation, format, prepared.request, ping);
  else
    co_await answer_whole(exchange, generation, format);
}

}  // namespace deepinfer::server
