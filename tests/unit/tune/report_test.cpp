#include "tune/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "config/yaml.h"

namespace deepinfer::tune {
namespace {

using testing::HasSubstr;
using testing::Not;

TuneResult result() {
  const auto run = [](double speed, double ttft) {
    return Measurement{.tokens_per_second = speed,
                       .ttft = {ttft / 2, ttft},
                       .itl = {0.01, 0.02},
                       .requests = 20,
                       .seconds = 3,
                       .complete = true};
  };
  TuneResult r{.model = "a <model> & more", .device = "CPU: 2 threads", .workload = "chat: 16 at a time"};
  r.axes = {{"gpu.max_num_seqs", {"64", "128", "256"}, 1},
            {"gpu.enforce_eager", {"false", "true"}, 0},
            {"cpu.threads", {"1", "2"}, 1}};
  r.outcome.trials = {{{1, 0, 1}, {run(500, 0.2)}},
                      {{2, 0, 1}, {run(600, 0.3)}},
                      {{2, 1, 1}, {Measurement{.failure = "does not fit\nby far"}}},
                      {{0, 0, 1}, {Measurement{.tokens_per_second = 3, .seconds = 9}}}};
  r.outcome.best = 1;
  r.outcome.slo_met = true;
  r.requests = 20;
  return r;
}

TEST(TuneReport, TheTableHasARowForEachTrial) {
  const std::string text = table(result(), {.ttft = 0.25});
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 5);
  EXPECT_THAT(text, HasSubstr("no         #################### best"));
  EXPECT_THAT(text, HasSubstr("yes        #################\n"));
  EXPECT_THAT(text, HasSubstr("cannot run"));
  EXPECT_THAT(text, HasSubstr("stopped"));
}

TEST(TuneReport, TheYamlLoadsAndHoldsTheTunedKeysAlone) {
  const std::string text = yaml(result(), {.ttft = 0.5}, "2026-01-31");
  const auto settings = parse_yaml(text, "tuned.yaml");
  ASSERT_TRUE(settings.ok()) << settings.error().message;
  std::map<std::string, std::string> values;
  for (const YamlSetting& s : *settings) values[s.key->path()] = s.value.items.at(0);
  EXPECT_EQ(values, (std::map<std::string, std::string>{
                        {"gpu.max_num_seqs", "256"}, {"gpu.enforce_eager", "false"}, {"cpu.threads", "2"}}));
  EXPECT_THAT(text, HasSubstr("a <model> & more"));
  EXPECT_THAT(text, HasSubstr("2026-01-31"));
  EXPECT_THAT(text, HasSubstr("TTFT p99 0.5 s: met"));
  EXPECT_THAT(text, HasSubstr("# tok/s with 128: 500.0, 256: 600.0"));
  TuneResult missed = result();
  missed.outcome.slo_met = false;
  EXPECT_THAT(yaml(missed, {.itl = 0.01}, "2026-01-31"), HasSubstr("NOT met"));
  EXPECT_THAT(yaml(missed, {}, "2026-01-31"), Not(HasSubstr("met")));
}

TEST(TuneReport, ThePlotIsEscaped) {
  const std::string text = svg(result(), {.ttft = 0.25});
  EXPECT_THAT(text, HasSubstr("a &lt;model&gt; &amp; more"));
  EXPECT_THAT(text, HasSubstr(">600</text>"));
  EXPECT_THAT(text, HasSubstr("#d60")) << "the best misses the SLO";
  EXPECT_THAT(text, Not(HasSubstr("nan")));
}

TEST(TuneReport, JsonHasTypedSettings) {
  const boost::json::object o = to_json(result(), {});
  EXPECT_EQ(o.at("best").at("gpu.max_num_seqs").as_int64(), 256);
  EXPECT_FALSE(o.at("best").at("gpu.enforce_eager").as_bool());
  EXPECT_EQ(o.at("trials").as_array().size(), 4u);
  EXPECT_TRUE(o.at("trials").at(0).at("failure").is_null());
  EXPECT_EQ(o.at("end").as_string(), "converged");
}

}  // namespace
}  // namespace deepinfer::tune
