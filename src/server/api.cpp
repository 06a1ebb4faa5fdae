#include "server/api.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <cctype>
#include <ctime>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "deepinfer/version.h"
#include "device/gpu_detector.h"
#include "device/gpu_text.h"
#include "server/answer.h"
#include "server/http_head.h"
#include "server/prepare.h"
#include "server/prompts.h"

namespace deepinfer::server {

namespace asio = boost::asio;
namespace json = boost::json;

namespace {

constexpr int kMaxTextJobs = 256;
constexpr int kMaxGpuJobs = 1024;  // they share one answer
constexpr size_t kMaxReported = 256;

int text_threads() {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()) / 4, 2, 8);
}

// The driver is opened by the first who asks.
GpuMonitor::Source gpu_source() {
  auto detector = std::make_shared<GpuDetector>();
  return [detector] { return detector->detect(); };
}

HttpReply json_reply(std::string body) {
  return {200, std::move(body)};
}

// %41 -> A; a broken escape stays as it is.
std::string percent_decode(std::string_view text) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c = static_cast<char>(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && digit(text[i + 1]) >= 0 && digit(text[i + 2]) >= 0) {
      out += static_cast<char>(digit(text[i + 1]) * 16 + digit(text[i + 2]));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace

struct Api::Route {
  std::string_view method;
  std::string_view path;  // ends with '/': a prefix
  Handler handler;
  bool loads;  // needs a model that is ready, and counts as work that a drain waits for

  bool matches(std::string_view wanted) const {
    return path.ends_with('/') ? wanted.starts_with(path) && wanted.size() > path.size() : wanted == path;
  }
};

const std::vector<Api::Route>& Api::routes() {
  static const std::vector<Route> kRoutes = {
      {"GET", "/health", &Api::health, false},
      {"GET", "/health/ready", &Api::ready, false},
      {"GET", "/version", &Api::version, false},
      {"GET", "/v1/models", &Api::models, false},
      {"GET", "/v1/models/", &Api::model, false},
      {"POST", "/v1/chat/completions", &Api::chat, true},
      {"POST", "/v1/completions", &Api::completion, true},
      {"POST", "/tokenize", &Api::tokenize, true},
      {"POST", "/detokenize", &Api::detokenize, true},
      {"GET", "/v1/gpu/info", &Api::gpu_info, false},
      {"GET", "/metrics", &Api::metrics, false},
      {"POST", "/reset_prefix_cache", &Api::reset_prefix_cache, true},
      {"POST", "/start_profile", &Api::start_profile, true},
      {"POST", "/stop_profile", &Api::stop_profile, true},
      {"GET", "/openapi.json", &Api::openapi, false},
  };
  return kRoutes;
}

Api::Api(const Config& config, std::chrono::milliseconds ping)
    : config_(config),
      ping_(ping),
      started_(static_cast<int64_t>(std::time(nullptr))),
      text_pool_(text_threads(), kMaxTextJobs, (text_threads() + 1) / 2),
      gpu_monitor_(gpu_source()),
      gpu_pool_(1, kMaxGpuJobs) {}

Result<void> Api::check() {
  std::set<std::string_view> valid;
  for (const Route& route : routes()) valid.insert(route.path);
  for (const std::string& open : config_.server.open_routes)
    if (!valid.contains(open))
      return make_error(ErrorCode::kConfig,
                        "server.open_routes: got \"{}\", which is no route; expected of {}",
                        open.substr(0, 200), fmt::join(valid, ", "));
  DI_ASSIGN(keys_, ApiKeys::load(config_.server));
  return {};
}

bool Api::is_open(const Route& route) const {
  const auto& open = config_.server.open_routes;
  return std::find(open.begin(), open.end(), route.path) != open.end();
}

void Api::drain() {
  draining_ = true;
}

bool Api::wait_idle(std::chrono::milliseconds time) {
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, time, [this] { return active_ == 0; });
}

std::optional<ApiError> Api::broken() const {
  if (lost_)
    return ApiError{
        503, "the device failed, and the server is ending", "service_unavailable", "", "device_lost", 10};
  const Llm* llm = llm_;
  const double limit = config_.server.stall_timeout;
  if (!llm || limit <= 0 || llm->engine->stats().seconds_since_heartbeat <= limit) return std::nullopt;
  return stalled_error();
}

// A page of another site can make a browser send requests here under that site's name.
bool Api::host_allowed(const HttpRequest& request) const {
  if (!config_.server.uds.empty() || !is_loopback_host(config_.server.host)) return true;
  const std::string_view host = request.field("host");
  if (host.empty() || is_loopback_host(host)) return true;  // empty: HTTP/1.0, or no name at all
  const auto& allowed = config_.server.allowed_origins;
  return std::any_of(allowed.begin(), allowed.end(), [&](const std::string& origin) {
    return origin == "*" || lower(host_name(origin)) == lower(host_name(host));
  });
}

bool Api::add_cors(HttpExchange& exchange) const {
  const std::string origin(exchange.request().field("origin"));
  const auto& allowed = config_.server.allowed_origins;
  if (allowed.empty()) return false;
  const bool any = std::find(allowed.begin(), allowed.end(), "*") != allowed.end();
  // Caches must not give one origin's answer to another.
  if (!any) exchange.add_field("Vary", "Origin");
  if (origin.empty()) return false;
  if (!any && std::find(allowed.begin(), allowed.end(), origin) == allowed.end()) return false;
  exchange.add_field("Access-Control-Allow-Origin", any ? "*" : origin);
  // Browsers refuse credentials (cookies, client certificates) with *; a key in a field is none of these.
  if (!any) exchange.add_field("Access-Control-Allow-Credentials", "true");
  exchange.add_field("Access-Control-Expose-Headers", "X-Request-Id, Retry-After");
  return true;
}

// What a browser asks before it sends what a page wants. SDKs add fields of their own: what is asked for is
// allowed, as long as it is a list of names.
HttpReply Api::options_reply(const HttpRequest& request, const std::string& allow,
                             bool allowed_origin) const {
  HttpReply reply{204, ""};
  reply.fields = {{"Allow", allow + ", OPTIONS"}};
  if (!allowed_origin) return reply;
  const std::string_view asked = request.field("access-control-request-headers");
  const bool plain =
      !asked.empty() && asked.size() <= 1024 && std::all_of(asked.begin(), asked.end(), [](unsigned char c) {
        return std::isalnum(c) || c == '-' || c == '_' || c == ',' || c == ' ';
      });
  reply.fields.emplace_back("Access-Control-Allow-Methods", allow + ", OPTIONS");
  reply.fields.emplace_back("Access-Control-Allow-Headers",
                            plain ? std::string(asked) : "Authorization, Content-Type, X-Request-Id");
  reply.fields.emplace_back("Access-Control-Max-Age", "600");
  return reply;
}

asio::awaitable<void> Api::handle(HttpExchange& exchange) {
  RequestRecord record(exchange.request());
  record.keep_texts = config_.server.log_requests && config_.server.log_prompts;
  exchange.record = &record;
  exchange.add_field("X-Request-Id", record.request_id);
  exchange.on_head([&](const HttpReply& reply) {
    record.status = reply.status;
    record.code = reply.code;
    http_metrics_.answered(record.handler, reply.status, reply.code);
  });
  const bool allowed_origin = add_cors(exchange);
  std::string fault;
  try {
    co_await dispatch(exchange, allowed_origin);
  } catch (const std::exception& thrown) {
    fault = fmt::format("{} {} failed: {}", record.method, record.path, thrown.what());
  }
  if (!fault.empty()) {
    log_with(log::level::err, record.ids(), fault);
    if (exchange.started())
      exchange.abandon();
    else
      co_await exchange.reply(error_reply(to_api_error({ErrorCode::kInternal, {}, {}})));
  }
  exchange.on_head(nullptr);
  if (record.status == 0) http_metrics_.answered(record.handler, 499, "");
  if (config_.server.log_requests) record.log_end();
}

asio::awaitable<void> Api::dispatch(HttpExchange& exchange, bool allowed_origin) {
  const HttpRequest& request = exchange.request();
  if (!host_allowed(request)) {
    co_await exchange.reply(error_reply({403,
                                         "Host: this server listens on loopback and answers for localhost "
                                         "only; to serve other names, name them "
                                         "in server.allowed_origins or set server.host",
                                         "invalid_request_error", "", "host_not_allowed"}));
    co_return;
  }
  std::string allow;
  const Route* found = nullptr;
  for (const Route& route : routes()) {
    if (!route.matches(request.path)) continue;
    exchange.record->handler = route.path;
    allow +=
        (allow.empty() ? "" : ", ") + std::string(route.method) + (route.method == "GET" ? ", HEAD" : "");
    if (request.method == route.method || (request.method == "HEAD" && route.method == "GET")) found = &route;
  }
  if (request.method == "OPTIONS" && !allow.empty()) {
    co_await exchange.reply(options_reply(request, allow, allowed_origin));
    co_return;
  }
  if (!(found && is_open(*found)) && !keys_.match(request.field("authorization"))) {
    HttpReply reply = error_reply(key_error());
    reply.fields.emplace_back("WWW-Authenticate", "Bearer");
    co_await exchange.reply(std::move(reply));
    co_return;
  }
  if (allow.empty()) {
    co_await exchange.reply(error_reply({404, "there is no route " + request.path.substr(0, 200),
                                         "invalid_request_error", "", "route_not_found"}));
    co_return;
  }
  if (!found) {
    HttpReply reply =
        error_reply({405, "this route takes " + allow, "invalid_request_error", "", "method_not_allowed"});
    reply.fields.emplace_back("Allow", allow);
    co_await exchange.reply(std::move(reply));
    co_return;
  }
  co_await serve_route(exchange, *found);
}

asio::awaitable<void> Api::serve_route(HttpExchange& exchange, const Route& route) {
  if (!route.loads) {
    co_await (this->*route.handler)(exchange);
    co_return;
  }
  if (draining_) {
    HttpReply reply = error_reply(draining_error());
    reply.close = true;
    co_await exchange.reply(std::move(reply));
    co_return;
  }
  if (!llm_) {
    co_await exchange.reply(error_reply(loading_error()));
    co_return;
  }
  if (const auto fault = broken()) {
    co_await exchange.reply(error_reply(*fault));
    co_return;
  }
  struct Count {
    explicit Count(Api& owner) : api(owner) {
      const std::lock_guard lock(api.mutex_);
      ++api.active_;
    }
    ~Count() {
      const std::lock_guard lock(api.mutex_);
      if (--api.active_ == 0) api.idle_.notify_all();
    }
    Api& api;
  };
  const Count count(*this);
  co_await (this->*route.handler)(exchange);
}

asio::awaitable<void> Api::health(HttpExchange& exchange) {
  if (const auto fault = broken())
    co_await exchange.reply(error_reply(*fault));
  else
    co_await exchange.reply(json_reply(R"({"status":"ok"})"));
}

asio::awaitable<void> Api::ready(HttpExchange& exchange) {
  if (draining_)
    co_await exchange.reply(error_reply(draining_error()));
  else if (!llm_)
    co_await exchange.reply(error_reply(loading_error()));
  else if (const auto fault = broken())
    co_await exchange.reply(error_reply(*fault));
  else
    co_await exchange.reply(json_reply(R"({"status":"ready"})"));
}

asio::awaitable<void> Api::version(HttpExchange& exchange) {
  co_await exchange.reply(json_reply(json::serialize(json::object{{"version", deepinfer::version()}})));
}

std::string Api::model_json(const std::string& name) const {
  return json::serialize(json::object{{"id", name},
                                      {"object", "model"},
                                      {"created", started_},
                                      {"owned_by", "deepinfer"},
                                      {"max_model_len", llm_.load()->max_model_len}});
}

asio::awaitable<void> Api::models(HttpExchange& exchange) {
  const Llm* llm = llm_;
  if (!llm) {
    co_await exchange.reply(error_reply(loading_error()));
    co_return;
  }
  std::string body = R"({"object":"list","data":[)";
  for (size_t i = 0; i < llm->names.size(); ++i) body += (i ? "," : "") + model_json(llm->names[i]);
  co_await exchange.reply(json_reply(body + "]}"));
}

asio::awaitable<void> Api::model(HttpExchange& exchange) {
  const Llm* llm = llm_;
  if (!llm) {
    co_await exchange.reply(error_reply(loading_error()));
    co_return;
  }
  constexpr size_t kPrefix = std::string_view("/v1/models/").size();
  const auto name =
      resolve_model(*llm, percent_decode(std::string_view(exchange.request().path).substr(kPrefix)));
  if (name)
    co_await exchange.reply(json_reply(model_json(*name)));
  else
    co_await exchange.reply(error_reply(to_api_error(name.error())));
}

void Api::log_unknown(const json::object& body, const RequestRecord& record) {
  for (const std::string& name : unknown_fields(body)) {
    const std::lock_guard lock(mutex_);
    if (reported_.size() < kMaxReported && name.size() < 100 && reported_.insert(name).second)
      log_with(log::level::debug, record.ids(),
               fmt::format("the field {} is unknown and ignored", json::serialize(json::string_view(name))));
  }
}

asio::awaitable<void> Api::chat(HttpExchange& exchange) {
  return generate(exchange, kChat);
}
asio::awaitable<void> Api::completion(HttpExchange& exchange) {
  return generate(exchange, kCompletion);
}

asio::awaitable<void> Api::generate(HttpExchange& exchange, Form form) {
  Llm& llm = *llm_;
  auto request = std::make_shared<HttpRequest>(exchange.take_request());
  const std::string salt = keys_.match(request->field("authorization")).value_or("");
  const size_t bytes = request->body.size();
  auto read = [this, &llm, form, request = std::move(request),
               record = exchange.record]() mutable -> Result<Prepared> {
    const Span span(llm.profiler.get(), Phase::kTokenize, static_cast<int32_t>(request->body.size()));
    auto body = parse_body(request->body);
    request.reset();
    if (!body) return std::move(body).error();
    log_unknown(*body, *record);
    auto ready = prepare(*body, form, llm, config_);
    if (ready && record->keep_texts)
      for (const auto& prompt : ready->prompts) record->prompt += text_of(llm, prompt, false);
    return ready;
  };
  auto prepared = co_await text_pool_.run<Prepared>(std::move(read), bytes);
  if (!prepared) {
    co_await exchange.reply(error_reply(to_api_error(prepared.error())));
    co_return;
  }
  exchange.record->generated.emplace().model = prepared->model;
  if (exchange.disconnected()) co_return;
  // Keys do not share cached prefixes, or the time to the first token would tell what others have sent.
  prepared->request.cache_salt.insert(0, salt);
  const auto format = reply_format(*prepared, form, llm);
  co_await answer(exchange, {llm, text_pool_, ping_, config_.server.stall_timeout}, *prepared, *format);
}

asio::awaitable<void> Api::gpu_info(HttpExchange& exchange) {
  using Report = std::shared_ptr<const GpuReport>;
  Report report = gpu_monitor_.fresh();
  if (!report) {
    auto refreshed =
        co_await gpu_pool_.run<Report>([this]() -> Result<Report> { return gpu_monitor_.refresh(); });
    if (!refreshed) {
      co_await exchange.reply(error_reply(to_api_error(refreshed.error())));
      co_return;
    }
    report = std::move(*refreshed);
  }
  co_await exchange.reply(json_reply(gpu_json(*report)));
}

}  // namespace deepinfer::server
