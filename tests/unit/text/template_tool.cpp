// Renders chat templates for the differential test against jinja2: one JSON request a line on standard input,
// one answer a line on standard output.
//   {"template": "...", "messages": [...], "tools": [...], "extra": {...}, "bos_token": "", "eos_token": "",
//    "add_generation_prompt": true, "now": 0}
//   -> {"text": "...", "trusted": [[begin, end], ...]} or {"error": "...", "phase": "parse" or "render"}
#include <boost/json.hpp>
#include <iostream>
#include <map>
#include <string>

#include "text/chat_template.h"

namespace {

using boost::json::object;
using deepinfer::ChatTemplate;

deepinfer::TemplateInput read_input(const object& request) {
  deepinfer::TemplateInput input;
  const auto has = [&](const char* name) { return request.contains(name); };
  if (has("messages")) input.messages = request.at("messages").as_array();
  if (has("tools") && request.at("tools").is_array()) input.tools = request.at("tools").as_array();
  if (has("extra")) input.extra = request.at("extra").as_object();
  if (has("bos_token")) input.bos_token = request.at("bos_token").as_string();
  if (has("eos_token")) input.eos_token = request.at("eos_token").as_string();
  if (has("add_generation_prompt"))
    input.add_generation_prompt = request.at("add_generation_prompt").as_bool();
  if (has("now")) input.now = request.at("now").as_int64();
  return input;
}

object answer(const object& request, std::map<std::string, ChatTemplate, std::less<>>& cache) {
  const std::string source(request.at("template").as_string());
  auto found = cache.find(source);
  if (found == cache.end()) {
    auto parsed = ChatTemplate::parse(source);
    if (!parsed) return {{"error", parsed.error().message}, {"phase", "parse"}};
    found = cache.emplace(source, std::move(*parsed)).first;
  }
  auto rendered = found->second.render(read_input(request));
  if (!rendered) return {{"error", rendered.error().message}, {"phase", "render"}};
  boost::json::array trusted;
  for (const auto& range : rendered->trusted) trusted.push_back(boost::json::array{range.begin, range.end});
  return {{"text", rendered->text}, {"trusted", std::move(trusted)}};
}

}  // namespace

int main() {
  std::map<std::string, ChatTemplate, std::less<>> cache;
  for (std::string line; std::getline(std::cin, line);) {
    boost::json::parse_options options;
    options.max_depth = 200;
    const auto request = boost::json::parse(line, {}, options);
    std::cout << boost::json::serialize(answer(request.as_object(), cache)) << std::endl;
  }
  return 0;
}
