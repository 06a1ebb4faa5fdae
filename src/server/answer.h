// Runs a prepared request and answers it, whole or as a stream.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <cstddef>
#include <memory>
#include <vector>

#include "engine/llm.h"
#include "server/http.h"
#include "server/prepare.h"
#include "server/reply_format.h"
#include "server/text_pool.h"

namespace deepinfer::server {

// What answers are made with; borrowed.
struct AnswerContext {
  Llm& llm;
  TextPool& text_pool;             // writes the JSON of large answers
  std::chrono::milliseconds ping;  // a stream says so often that it lives
  double stall_timeout = 0;        // seconds without the engine's heartbeat that end an answer; 0: none
};

ReplyOptions reply_options(const Prepared& prepared, Form form, ReplyHead head);
// With the request's own id, or a new one. Borrows llm's tokenizer.
std::unique_ptr<ReplyFormat> reply_format(const Prepared& prepared, Form form, const Llm& llm);

// As ReplyFormat::whole() takes it.
struct WholeAnswer {
  std::vector<ChoiceUpdate> choices;
  std::vector<PromptTokens> prompts;
  Usage usage;
};

// Neither an answer nor scores of the prompt are asked for: the engine has nothing to do.
bool generates_nothing(const Prepared& prepared);
WholeAnswer empty_answer(const Prepared& prepared);
// Adds updates to the choices that they are of.
void gather(std::vector<ChoiceUpdate>& choices, std::vector<ChoiceUpdate> updates);

// About how long the JSON of these choices gets. `whole`: not events of a stream, of which only a choice's
// first tells of the prompt.
size_t about_bytes(const Prepared& prepared, const std::vector<ChoiceUpdate>& choices,
                   const std::vector<PromptTokens>& prompts, bool whole);
// From so many bytes on, they are written by the text workers: half a millisecond or more.
inline constexpr size_t kLargeReply = 64 << 10;

// A client that leaves ends the generation at once, and so does an engine that stalls: its own deadlines do
// not pass then.
boost::asio::awaitable<void> answer(HttpExchange& exchange, const AnswerContext& context,
                                    const Prepared& prepared, ReplyFormat& format);

}  // namespace deepinfer::server
