// /start_profile and /stop_profile: vLLM's routes, which are there only where the settings ask for profiles.
#include <boost/json/serialize.hpp>

#include "base/check.h"
#include "base/log.h"
#include "engine/profiling.h"
#include "server/api.h"

namespace deepinfer::server {

namespace asio = boost::asio;
namespace json = boost::json;

namespace {

HttpReply refusal_reply(const Error& error) {
  ApiError refusal = to_api_error(error);
  // Start after start, stop without start; the engine is as it was.
  if (error.code == ErrorCode::kUnavailable)
    refusal = {409, error.message, "conflict_error", "", "profile_running"};
  if (error.code == ErrorCode::kNotFound) refusal = {409, error.message, "conflict_error", "", "no_profile"};
  return error_reply(refusal);
}

HttpReply off_reply() {
  return error_reply({404,
                      "profiling is off: start the server with server.profile_dir (--profile-dir FOLDER) or "
                      "ENABLE_PROFILER=1",
                      "invalid_request_error", "", "profiling_off"});
}

}  // namespace

asio::awaitable<void> Api::start_profile(HttpExchange& exchange) {
  Profiler* profiler = llm_.load()->profiler.get();
  if (profiler == nullptr || !profiling_wanted(config_)) {
    co_await exchange.reply(off_reply());
    co_return;
  }
  const auto started = co_await profile_pool_.run<bool>([profiler]() -> Result<bool> {
    DI_TRY(profiler->start());
    return true;
  });
  if (started) log::info("a profile is being recorded, until POST /stop_profile");
  co_await exchange.reply(started ? HttpReply{200, R"({"status":"recording"})"}
                                  : refusal_reply(started.error()));
}

// Sums up and writes on a thread of its own: a large trace takes seconds.
asio::awaitable<void> Api::stop_profile(HttpExchange& exchange) {
  Profiler* profiler = llm_.load()->profiler.get();
  if (profiler == nullptr || !profiling_wanted(config_)) {
    co_await exchange.reply(off_reply());
    co_return;
  }
  const auto report = co_await profile_pool_.run<ProfileReport>(
      [this, profiler] { return profiler->stop(profiler->next_file(profile_folder(config_))); });
  if (!report) {
    co_await exchange.reply(refusal_reply(report.error()));
    co_return;
  }
  log_profile(*report);
  if (report->file.empty()) {
    co_await exchange.reply(
        error_reply({500, "the profile could not be written; the server's log has its summary and says why",
                     "server_error", "", "profile_not_written"}));
    co_return;
  }
  json::object body{
      {"file", report->file.string()}, {"events", report->events}, {"dropped", report->dropped}};
  body["summary"] = to_json(report->summary);
  body["text"] = to_text(report->summary);
  co_await exchange.reply({200, json::serialize(body)});
}

}  // namespace deepinfer::server
