// /tokenize and /detokenize: text to token ids and back, with vLLM's fields.
#include <boost/json/serialize.hpp>

#include "base/check.h"
#include "server/api.h"
#include "server/prepare.h"
#include "server/prompts.h"
#include "server/reply_json.h"
#include "text/byte_alphabet.h"

namespace deepinfer::server {

namespace asio = boost::asio;
namespace json = boost::json;

namespace {

// As a vocabulary file writes it.
std::string spelling(const Tokenizer& tokenizer, int32_t id) {
  const std::string_view bytes = tokenizer.bytes(id);
  return tokenizer.is_special(id) ? std::string(bytes) : bytes_to_alphabet(bytes);
}

Result<std::vector<int32_t>> ids_of_body(const json::object& body, const Llm& llm, const Config& config) {
  if (body.contains("messages")) {
    DI_ASSIGN(const ChatRequest request, parse_chat(body, parse_context(llm, config)));
    DI_TRY(resolve_model(llm, request.model));
    return chat_ids(llm, request);
  }
  FieldReader reader(body);
  GenerationRequest request;
  request.model = reader.string("model", kMaxName).value_or("");
  request.add_special_tokens = reader.boolean("add_special_tokens").value_or(true);
  const json::value* prompt = reader.find("prompt");
  if (!reader.ok()) return reader.error();
  const json::string* text = prompt ? prompt->if_string() : nullptr;
  if (!text) return field_error("prompt", "a string", prompt ? *prompt : json::value(nullptr));
  DI_TRY(resolve_model(llm, request.model));
  return text_ids(llm, {text->data(), text->size()}, request.add_special_tokens);
}

Result<std::string> tokenize_body(const std::string& text, const Llm& llm, const Config& config) {
  DI_ASSIGN(const json::object body, parse_body(text));
  FieldReader reader(body);
  const bool strings = reader.boolean("return_token_strs").value_or(false);
  if (!reader.ok()) return reader.error();
  DI_ASSIGN(const std::vector<int32_t> ids, ids_of_body(body, llm, config));
  json::value token_strs(nullptr);
  if (strings) {
    json::array& list = token_strs.emplace_array();
    for (const int32_t id : ids) list.emplace_back(spelling(*llm.tokenizer, id));
  }
  return json::serialize(json::object{{"count", ids.size()},
                                      {"max_model_len", llm.max_model_len},
                                      {"tokens", json::array(ids.begin(), ids.end())},
                                      {"token_strs", std::move(token_strs)}});
}

Result<std::string> detokenize_body(const std::string& text, const Llm& llm) {
  DI_ASSIGN(const json::object body, parse_body(text));
  FieldReader reader(body);
  const std::string model = reader.string("model", kMaxName).value_or("");
  const json::value* tokens = reader.find("tokens");
  if (!reader.ok()) return reader.error();
  DI_TRY(resolve_model(llm, model));
  const json::array* items = tokens ? tokens->if_array() : nullptr;
  if (!items) return field_error("tokens", "an array of token ids", tokens ? *tokens : json::value(nullptr));
  std::vector<int32_t> ids;
  ids.reserve(items->size());
  for (size_t i = 0; i < items->size(); ++i) {
    const auto id = token_id((*items)[i], llm.tokenizer->vocab_size());
    if (!id)
      return field_error(fmt::format("tokens[{}]", i), token_range(llm.tokenizer->vocab_size()), (*items)[i]);
    ids.push_back(*id);
  }
  return "{\"prompt\":" + json_string(text_of(llm, ids, false)) + "}";
}

}  // namespace

asio::awaitable<void> Api::tokenize(HttpExchange& exchange) {
  auto body = std::make_shared<std::string>(exchange.take_request().body);
  auto result = co_await text_pool_.run<std::string>(
      [this, body] { return tokenize_body(*body, *llm_, config_); }, body->size());
  co_await exchange.reply(result ? HttpReply{200, std::move(*result)}
                                 : error_reply(to_api_error(result.error())));
}

asio::awaitable<void> Api::detokenize(HttpExchange& exchange) {
  auto body = std::make_shared<std::string>(exchange.take_request().body);
  auto result = co_await text_pool_.run<std::string>([this, body] { return detokenize_body(*body, *llm_); },
                                                     body->size());
  co_await exchange.reply(result ? HttpReply{200, std::move(*result)}
                                 : error_reply(to_api_error(result.error())));
}

}  // namespace deepinfer::server
