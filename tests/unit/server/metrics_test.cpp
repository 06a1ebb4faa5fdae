// The text of /metrics, byte for byte, and what of a request goes into the log.
#include "server/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/engine_metrics.h"
#include "server/metrics_text.h"
#include "server/request_record.h"

namespace deepinfer::server {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(MetricsText, AFamilyOfEachKind) {
  MetricsText text;
  text.set_prefix("deepinfer:");
  text.family("tokens_total", "counter", "Tokens, \"all\" of\nthem \\o/.");
  text.sample({{"engine", "0"}, {"model_name", "a\"b\\c\nd"}}, 12);
  text.family("usage", "gauge", "Usage.");
  text.sample({}, 0.125);
  Histogram histogram({0.001, 1, 2.5});
  for (const double value : {0.0005, 0.5, 0.75, 3.0}) histogram.observe(value);
  text.family("time_seconds", "histogram", "Time.");
  text.histogram({{"engine", "0"}}, histogram);
  EXPECT_EQ(text.take(),
            "# HELP deepinfer:tokens_total Tokens, \"all\" of\\nthem \\\\o/.\n"
            "# TYPE deepinfer:tokens_total counter\n"
            "deepinfer:tokens_total{engine=\"0\",model_name=\"a\\\"b\\\\c\\nd\"} 12.0\n"
            "# HELP deepinfer:usage Usage.\n"
            "# TYPE deepinfer:usage gauge\n"
            "deepinfer:usage 0.125\n"
            "# HELP deepinfer:time_seconds Time.\n"
            "# TYPE deepinfer:time_seconds histogram\n"
            "deepinfer:time_seconds_bucket{engine=\"0\",le=\"0.001\"} 1.0\n"
            "deepinfer:time_seconds_bucket{engine=\"0\",le=\"1.0\"} 3.0\n"
            "deepinfer:time_seconds_bucket{engine=\"0\",le=\"2.5\"} 3.0\n"
            "deepinfer:time_seconds_bucket{engine=\"0\",le=\"+Inf\"} 4.0\n"
            "deepinfer:time_seconds_sum{engine=\"0\"} 4.2505\n"
            "deepinfer:time_seconds_count{engine=\"0\"} 4.0\n");
}

TEST(MetricsText, WhileTheModelLoadsThereIsWhatHttpKnows) {
  HttpMetrics http;
  http.answered("/health", 200, "");
  http.answered("/v1/completions", 503, "loading");
  const std::string text = metrics_text(http, Config{}, nullptr);
  EXPECT_THAT(text, HasSubstr("deepinfer:build_info{version=\""));
  EXPECT_THAT(text, HasSubstr("deepinfer:http_requests_total{handler=\"/health\",status=\"200\"} 1.0\n"));
  EXPECT_THAT(text, HasSubstr("deepinfer:requests_rejected_total{reason=\"loading\"} 1.0\n"));
  EXPECT_THAT(text, HasSubstr("deepinfer:requests_rejected_total{reason=\"queue_full\"} 0.0\n"));
  EXPECT_THAT(text, Not(HasSubstr("vllm:")));
}

TEST(HttpMetrics, OnlyRefusalsOfTheServerAreRejections) {
  HttpMetrics http;
  http.answered("/v1/completions", 200, "");
  http.answered("/v1/completions", 400, "invalid_value");
  http.answered("/v1/completions", 500, "internal_error");
  http.answered("none", 404, "route_not_found");
  http.answered("/health", 503, "stalled");
  http.answered("/health/ready", 503, "loading");
  for (const auto& [reason, count] : http.rejected()) EXPECT_EQ(count, 0u) << reason;
  http.answered("none", 431, "");
  http.answered("none", 413, "");
  http.answered("none", 408, "");
  http.answered("none", 503, "");
  http.answered("/v1/completions", 429, "queue_full");
  http.answered("/v1/completions", 503, "unavailable");
  http.answered("/v1/completions", 503, "device_lost");
  const auto rejected = http.rejected();
  for (const char* reason : {"headers_too_large", "request_too_large", "request_timeout", "overload",
                             "queue_full", "draining", "device_lost"})
    EXPECT_EQ(rejected.at(reason), 1u) << reason;
}

TEST(TraceParent, IsTakenAsTheStandardSaysOrNotAtAll) {
  const std::string trace = "4bf92f3577b34da6a3ce929d0e0e4736", parent = "00f067aa0ba902b7";
  const std::string good = "00-" + trace + "-" + parent + "-01";
  const auto parsed = parse_traceparent(good);
  ASSERT_TRUE(parsed.has_value());
  EXPECT_EQ(parsed->trace_id, trace);
  EXPECT_EQ(parsed->parent_id, parent);
  EXPECT_TRUE(parse_traceparent("cc-" + trace + "-" + parent + "-01").has_value());
  EXPECT_TRUE(parse_traceparent("cc-" + trace + "-" + parent + "-01-more").has_value());
  for (const std::string& bad :
       {std::string(), good + "-more", good + " ", good.substr(1), "ff-" + good.substr(3),
        "0X-" + good.substr(3), "cc-" + trace + "-" + parent + "-01.more",
        "00-" + std::string(32, '0') + "-" + parent + "-01",
        "00-" + trace + "-" + std::string(16, '0') + "-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-" + parent + "-01", "00_" + good.substr(3),
        "00-" + trace + "-" + parent + "-0g", good.substr(0, 54)})
    EXPECT_FALSE(parse_traceparent(bad).has_value()) << bad;
}

TEST(RequestRecord, TakesPlainIdsAndOneTraceparentOnly) {
  const std::string parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  HttpRequest request{.method = "POST", .path = "/v1/completions"};
  request.fields = {{"x-request-id", "abc-1"}, {"traceparent", parent}};
  EXPECT_EQ(RequestRecord(request).request_id, "abc-1");
  EXPECT_EQ(
      RequestRecord(request).ids().json(),
      R"(,"request_id":"abc-1","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","parent_id":"00f067aa0ba902b7")");
  request.fields = {{"x-request-id", "with space"}, {"traceparent", parent}, {"traceparent", parent}};
  const RequestRecord record(request);
  EXPECT_EQ(record.request_id.size(), 32u);
  EXPECT_FALSE(record.trace.has_value());
}

}  // namespace
}  // namespace deepinfer::server
