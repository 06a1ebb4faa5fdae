#include "cli/bench_command.h"

#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iterator>
#include <optional>
#include <random>
#include <sstream>

#include "base/check.h"
#include "base/queue.h"
#include "cli/bench_floor.h"
#include "cli/exit_code.h"
#include "deepinfer/version.h"
#include "engine/device_rates.h"
#include "engine/llm.h"
#include "engine/profiling.h"
#include "model/random_checkpoint.h"

namespace deepinfer {
namespace {

namespace json = boost::json;
using Time = std::chrono::steady_clock::time_point;

struct News {
  size_t sequence = 0;
  size_t tokens = 0;
  Time when;
  bool finished = false;
  std::string error;
};

struct Load {
  int sequences = 1;
  int prompt = 1;
  int generate = 1;
};

struct Times {
  double seconds_to_first = 0;  // until every sequence had its first token
  double seconds_decoding = 0;  // from then until the first sequence had its last
  double tokens_decoding = 0;   // that came in this time
  double seconds = 0;           // until every sequence had its last token
};

double since(Time start, Time end) {
  return std::chrono::duration<double>(end - start).count();
}

class Bench {
 public:
  explicit Bench(Llm& llm) : llm_(llm) {}

  Result<Times> run(const Load& load) {
    Queue<News> queue;
    const Time start = std::chrono::steady_clock::now();
    for (int s = 0; s < load.sequences; ++s) {
      SamplingParams p{.temperature = 0, .max_tokens = load.generate, .ignore_eos = true};
      auto on_event = [&queue, s](const OutputEvent& e) {
        queue.push({static_cast<size_t>(s), e.tokens.size(), std::chrono::steady_clock::now(),
                    e.finish != FinishReason::kNone, e.error != nullptr ? e.error->message : ""});
      };
      Result<uint64_t> id =
          llm_.engine->submit({.prompt = random_prompt(load.prompt), .sampling = p}, on_event);
      if (!id) {
        llm_.engine->stop();  // the events of those submitted before need the queue
        return std::move(id).error();
      }
    }
    return collect(queue, load, start);
  }

 private:
  std::vector<int32_t> random_prompt(int n) {
    std::uniform_int_distribution<int32_t> token(0, llm_.model.vocab_size - 1);
    std::vector<int32_t> prompt(n);
    for (int32_t& t : prompt) t = token(random_);
    return prompt;
  }

  static Result<Times> collect(Queue<News>& queue, const Load& load, Time start) {
    std::vector<News> all;
    std::vector<bool> began(load.sequences, false);
    Time first = start;
    std::optional<Time> end;
    std::string error;
    for (int waiting = load.sequences; waiting > 0;) {
      std::optional<News> news = queue.pop_for(std::chrono::seconds(1));
      if (!news) continue;
      if (news->tokens > 0 && !began[news->sequence]) {
        began[news->sequence] = true;
        first = news->when;
      }
      if (news->finished) --waiting;
      if (news->finished && !end) end = news->when;
      if (!news->error.empty()) error = news->error;
      all.push_back(std::move(*news));
    }
    if (!error.empty()) return make_error(ErrorCode::kInternal, "bench: {}", error);
    Times t{.seconds_to_first = since(start, first), .seconds_decoding = since(first, *end)};
    t.seconds = since(start, all.back().when);
    for (const News& n : all)
      if (n.when > first && n.when <= *end) t.tokens_decoding += static_cast<double>(n.tokens);
    return t;
  }

  Llm& llm_;
  std::mt19937 random_{20240101};
};

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

double since_process_start() {
  // Field 22 of /proc/self/stat, in clock ticks since the machine started; the name in field 2 may hold
  // spaces.
  std::ifstream file("/proc/self/stat");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  std::istringstream rest(text.substr(std::min(text.rfind(')') + 1, text.size())));
  std::string field;
  for (int i = 3; i <= 22; ++i) rest >> field;
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9 -
         std::strtod(field.c_str(), nullptr) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

struct Test {
  std::string name;
  Load load;
  double tokens_per_second = 0;  // the median
  std::vector<double> runs, seconds;

  bool is_prefill() const { return load.generate == 1; }
  // Every sequence takes part in a step.
  double step_tokens() const { return is_prefill() ? load.prompt : load.sequences; }
  double milliseconds() const { return 1e3 * step_tokens() / tokens_per_second; }
  double floor_milliseconds(const BenchFloor& floor) const {
    return 1e3 * (is_prefill() ? floor.prefill(load.prompt)
                               : floor.decode(load.sequences, load.prompt + load.generate / 2.0));
  }
};

// Runs the tests and writes a line for each.
class Tests {
 public:
  Tests(Bench& bench, const BenchOptions& options, int step_tokens)
      : bench_(bench), options_(options), step_tokens_(step_tokens) {}

  Result<std::vector<Test>> run() {
    const BenchOptions& o = options_;
    for (const int n : o.prefill)
      if (n > 0) DI_TRY(measure(fmt::format("prefill_{}", n), {1, n, 1}));
    if (o.decode > 0) DI_TRY(measure(fmt::format("decode_{}", o.decode), {1, 1, o.decode + 1}));
    for (const int n : o.batch) {
      // While the last prompts are computed, the first sequences decode: they need as many tokens more.
      const int steps = static_cast<int>(int64_t{n} * o.batch_prompt / step_tokens_ + 1);
      if (n > 0 && o.decode > 0)
        DI_TRY(measure(fmt::format("batch_{}", n), {n, o.batch_prompt, o.decode + 1 + steps}));
    }
    return std::move(done_);
  }

 private:
  Result<void> measure(const std::string& name, const Load& load) {
    Test test{.name = name, .load = load};
    for (int i = 0; i <= options_.repeat; ++i) {
      DI_ASSIGN(const Times t, bench_.run(load));
      if (i == 0) continue;  // the first run touches the memory
      test.seconds.push_back(t.seconds);
      test.runs.push_back(test.is_prefill() ? load.prompt / t.seconds_to_first
                                            : t.tokens_decoding / t.seconds_decoding);
    }
    test.tokens_per_second = median(test.runs);
    std::fprintf(stderr, "%-16s %9.1f tok/s %10.3f ms\n", name.c_str(), test.tokens_per_second,
                 test.milliseconds());
    done_.push_back(std::move(test));
    return {};
  }

  Bench& bench_;
  const BenchOptions& options_;
  int step_tokens_;
  std::vector<Test> done_;
};

json::array results_json(const std::vector<Test>& tests, const BenchFloor& floor) {
  json::array results;
  for (const Test& t : tests) {
    json::object line{{"test", t.name},
                      {"sequences", t.load.sequences},
                      {"prompt_tokens", t.load.prompt},
                      {"generated_tokens", t.load.generate},
                      {"tokens_per_second", t.tokens_per_second},
                      {"milliseconds", t.milliseconds()},
                      {"runs", json::value_from(t.runs)},
                      {"seconds", json::value_from(t.seconds)}};
    if (floor.known()) {
      const double least = t.floor_milliseconds(floor);
      line["floor_milliseconds"] = least;
      line["fraction_of_floor"] = least / t.milliseconds();
      std::fprintf(stderr, "%-16s %8.0f%% of the floor of %.3f ms\n", t.name.c_str(),
                   100 * least / t.milliseconds(), least);
    }
    results.push_back(std::move(line));
  }
  return results;
}

// The rates that were not given, of a GPU whose memory nobody uses any more. Where they cannot be measured
// there are no floors.
Result<void> find_rates(const Config& config, const BenchOptions& o, BenchFloor& floor) {
  floor.copy_gb_per_second = o.copy_rate;
  floor.tflop_per_second = o.matmul_rate;
  if (floor.known()) return {};
  DI_ASSIGN(const std::optional<cuda::DeviceRates> rates, measure_device(config, o.rate_sizes));
  if (!rates) return {};
  if (o.copy_rate == 0) floor.copy_gb_per_second = rates->copy_gb_per_second;
  if (o.matmul_rate == 0) floor.tflop_per_second = rates->tflop_per_second;
  std::fprintf(stderr, "%-16s %9.1f GB/s copied, %.1f TFLOP/s multiplied\n", "device",
               rates->copy_gb_per_second, rates->tflop_per_second);
  if (!floor.known()) return make_error(ErrorCode::kUnavailable, "{}", rates->no_products);
  return {};
}

Result<Checkpoint> open_model(Config& config, const BenchOptions& o) {
  if (!o.random_weights.empty()) {
    config.model.name = o.random_weights;
    DI_ASSIGN(Checkpoint c, random_checkpoint(o.random_weights, 1));
    if (!o.save.empty()) DI_TRY(save_checkpoint(c, o.save));
    return c;
  }
  if (!o.save.empty())
    return make_error(ErrorCode::kConfig, "--save: expected together with --random-weights");
  DI_ASSIGN(const std::filesystem::path path, locate_model(config));
  return open_weights(path);
}

// Of an element of the KV cache, its share of the scales included.
double kv_bytes(const Config& config, const ModelConfig& model) {
  const std::string& name = config.gpu.kv_cache_dtype;
  if (name == "float32") return 4;
  if (name == "int8") return 1 + 2.0 / model.head_dim;
  return name == "fp8" || (name == "auto" && model.kv_cache == "fp8") ? 1 : 2;
}

int longest(const BenchOptions& o) {
  const int prefill = o.prefill.empty() ? 0 : *std::max_element(o.prefill.begin(), o.prefill.end());
  const int batch = o.batch.empty() ? 0 : *std::max_element(o.batch.begin(), o.batch.end());
  return std::max({prefill + 1, o.decode + 2, batch == 0 ? 0 : o.batch_prompt + o.decode + 1});
}

// Off unless it was asked for; an error that keeps a profile from being begun ends the command.
Result<void> begin_profile(Profiler& profiler, const BenchOptions& o) {
  return o.profile && !profiler.recording() ? profiler.start() : Result<void>();
}

// The trace, and what it says on standard error; null where none was asked for.
Result<json::value> end_profile(Profiler& profiler, const Config& config, const BenchOptions& o) {
  if (!profiler.recording()) return json::value(nullptr);
  const std::filesystem::path file = o.profile_file.empty() ? profiler.next_file(profile_folder(config))
                                                            : std::filesystem::path(o.profile_file);
  DI_ASSIGN(const ProfileReport report, profiler.stop(file));
  std::fprintf(stderr, "%s", to_text(report.summary).c_str());
  if (report.file.empty()) return make_error(ErrorCode::kConfig, "{}", report.problem);
  std::fprintf(stderr,
               "trace: %s (%llu events, %llu more found no room); open it in https://ui.perfetto.dev\n",
               file.c_str(), static_cast<unsigned long long>(report.events),
               static_cast<unsigned long long>(report.dropped));
  json::object out = to_json(report.summary);
  out["file"] = file.string();
  out["events"] = report.events;
  out["dropped"] = report.dropped;
  return json::value(std::move(out));
}

json::object floor_json(const BenchFloor& f) {
  return {{"weight_bytes", f.weight_bytes},
          {"kv_bytes_per_token", f.kv_bytes_per_token},
          {"copy_gb_per_second", f.copy_gb_per_second},
          {"matmul_tflop_per_second", f.tflop_per_second}};
}

}  // namespace

int bench_command(Config config, const BenchOptions& o) {
  config.gpu.enable_prefix_caching = false;  // every run computes its prompt
  for (const int n : o.batch) config.gpu.max_num_seqs = std::max(config.gpu.max_num_seqs, n);
  Result<Checkpoint> checkpoint = open_model(config, o);
  if (!checkpoint) return report(checkpoint.error());
  BenchFloor floor = bench_floor(*checkpoint, kv_bytes(config, checkpoint->config));
  Result<std::unique_ptr<Llm>> llm = Llm::load(config, std::move(*checkpoint));
  if (!llm) return report(llm.error());
  const double loaded = since_process_start();
  if (longest(o) > (*llm)->max_model_len)
    return report(make_error(ErrorCode::kConfig,
                             "bench: the tests need a context of {}, the model has {}: ask for less",
                             longest(o), (*llm)->max_model_len));
  auto bench = std::make_unique<Bench>(**llm);
  if (Result<Times> first = bench->run({1, 16, 1}); !first) return report(first.error());
  const double answered = since_process_start();
  std::fprintf(stderr, "%-16s %9.2f s, first token after %.2f s\n", "start", loaded, answered);
  if (const Result<void> begun = begin_profile(*(*llm)->profiler, o); !begun) return report(begun.error());
  const Result<std::vector<Test>> tests = Tests(*bench, o, config.gpu.max_num_batched_tokens).run();
  if (!tests) return report(tests.error());
  Result<json::value> profile = end_profile(*(*llm)->profiler, config, o);
  if (!profile) return report(profile.error());
  json::object out{{"version", version()},        {"model", (*llm)->names[0]},
                   {"device", config.gpu.device}, {"weight_bytes", (*llm)->summary.weight_bytes},
                   {"load_seconds", loaded},      {"first_token_seconds", answered}};
  bench.reset();
  llm->reset();
  // Last, so that the times of the start are those of a user's.
  if (!tests->empty())
    if (const Result<void> known = find_rates(config, o, floor); !known)
      std::fprintf(stderr, "deepinfer: no floors: %s\n", known.error().message.c_str());
  out["results"] = results_json(*tests, floor);
  if (floor.known()) out["floor"] = floor_json(floor);
  if (!profile->is_null()) out["profile"] = std::move(*profile);
  std::printf("%s\n", json::serialize(out).c_str());
  return 0;
}

}  // namespace deepinfer
