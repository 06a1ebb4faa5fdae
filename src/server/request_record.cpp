#include "server/request_record.h"

#include <fmt/format.h>

#include <algorithm>

#include "server/auth.h"

namespace deepinfer::server {
namespace {

constexpr size_t kMaxPath = 200;

bool is_plain_id(std::string_view id) {
  return !id.empty() && id.size() <= 128 &&
         std::all_of(id.begin(), id.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; });
}

// Lower case, as the standard demands of who sends it.
bool is_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool is_zero(std::string_view text) {
  return text.find_first_not_of('0') == std::string_view::npos;
}

std::optional<TraceParent> traceparent_of(const HttpRequest& request) {
  const auto is_it = [](const auto& field) { return field.first == "traceparent"; };
  if (std::count_if(request.fields.begin(), request.fields.end(), is_it) != 1) return {};
  return parse_traceparent(request.field("traceparent"));
}

}  // namespace

// 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01; later versions may go on after a dash.
std::optional<TraceParent> parse_traceparent(std::string_view text) {
  constexpr size_t kBytes = 55;
  if (text.size() < kBytes || text[2] != '-' || text[35] != '-' || text[52] != '-') return {};
  const std::string_view version = text.substr(0, 2), trace = text.substr(3, 32),
                         parent = text.substr(36, 16), flags = text.substr(53, 2);
  if (!is_hex(version) || !is_hex(trace) || !is_hex(parent) || !is_hex(flags)) return {};
  if (version == "ff" || is_zero(trace) || is_zero(parent)) return {};
  if (text.size() > kBytes && (version == "00" || text[kBytes] != '-')) return {};
  return TraceParent{std::string(trace), std::string(parent)};
}

RequestRecord::RequestRecord(const HttpRequest& request)
    : trace(traceparent_of(request)),
      method(request.method),
      path(request.path.substr(0, kMaxPath)),
      begin(std::chrono::steady_clock::now()) {
  const std::string_view given = request.field("x-request-id");
  request_id = is_plain_id(given) ? std::string(given) : random_hex(16);
}

LogFields RequestRecord::ids() const {
  LogFields fields;
  fields.add("request_id", request_id);
  if (trace) fields.add("trace_id", trace->trace_id).add("parent_id", trace->parent_id);
  return fields;
}

void RequestRecord::log_end() const {
  LogFields fields = ids();
  fields.add("method", method).add("path", path);
  fields.add("status", static_cast<int64_t>(status != 0 ? status : 499));
  if (!code.empty()) fields.add("code", code);
  if (generated) {
    fields.add("model", generated->model);
    fields.add("prompt_tokens", generated->prompt_tokens);
    fields.add("cached_tokens", generated->cached_tokens);
    fields.add("output_tokens", generated->output_tokens);
    if (generated->queue) fields.add("queue_seconds", *generated->queue);
    if (generated->first_token) fields.add("ttft_seconds", *generated->first_token);
  }
  fields.add("total_seconds",
             std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  if (generated) fields.add("finish_reason", generated->finish);
  if (!prompt.empty()) fields.add("prompt", prompt);
  for (size_t i = 0; i < answers.size(); ++i)
    fields.add(answers.size() == 1 ? "answer" : fmt::format("answer_{}", i), answers[i]);
  log_with(spdlog::level::info, fields, "request finished");
}

}  // namespace deepinfer::server
