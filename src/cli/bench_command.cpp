#include "cli/bench_command.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <random>

#include "base/check.h"
#include "base/queue.h"
#include "cli/exit_code.h"
#include "deepinfer/version.h"
#include "engine/llm.h"

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
  double seconds_decoding = 0;  // from then to the end
  double tokens_decoding = 0;   // that came in this time
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
    Time first = start, end = start;
    std::string error;
    for (int waiting = load.sequences; waiting > 0;) {
      std::optional<News> news = queue.pop_for(std::chrono::seconds(1));
      if (!news) continue;
      if (news->tokens > 0 && !began[news->sequence]) {
        began[news->sequence] = true;
        first = news->when;
      }
      if (news->finished) --waiting;
      if (!news->error.empty()) error = news->error;
      end = news->when;
      all.push_back(std::move(*news));
    }
    if (!error.empty()) return make_error(ErrorCode::kInternal, "bench: {}", error);
    Times t{.seconds_to_first = since(start, first), .seconds_decoding = since(first, end)};
    for (const News& n : all)
      if (n.when > first) t.tokens_decoding += static_cast<double>(n.tokens);
    return t;
  }

  Llm& llm_;
  std::mt19937 random_{20240101};
};

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

// One line of the result: the speed of each run, and their median.
Result<json::object> measure(Bench& bench, const std::string& name, const Load& load, bool prefill,
                             int repeat) {
  json::array runs;
  std::vector<double> speeds;
  for (int i = 0; i <= repeat; ++i) {
    DI_ASSIGN(const Times t, bench.run(load));
    if (i == 0) continue;  // the first run touches the memory
    speeds.push_back(prefill ? load.sequences * load.prompt / t.seconds_to_first
                             : t.tokens_decoding / t.seconds_decoding);
    runs.push_back(speeds.back());
  }
  std::fprintf(stderr, "%-16s %9.1f tok/s\n", name.c_str(), median(speeds));
  return json::object{{"test", name},
                      {"sequences", load.sequences},
                      {"prompt_tokens", load.prompt},
                      {"generated_tokens", load.generate},
                      {"tokens_per_second", median(speeds)},
                      {"runs", runs}};
}

Result<json::array> measure_all(Bench& bench, const BenchOptions& o) {
  json::array results;
  auto add = [&](const std::string& name, const Load& load, bool prefill) -> Result<void> {
    DI_ASSIGN(json::object line, measure(bench, name, load, prefill, o.repeat));
    results.push_back(std::move(line));
    return {};
  };
  if (o.prefill > 0) DI_TRY(add(fmt::format("prefill_{}", o.prefill), {1, o.prefill, 1}, true));
  if (o.decode > 0) DI_TRY(add(fmt::format("decode_{}", o.decode), {1, 1, o.decode + 1}, false));
  for (const int n : o.batch)
    DI_TRY(add(fmt::format("batch_{}", n), {n, o.batch_prompt, o.decode + 1}, false));
  return results;
}

}  // namespace

int bench_command(Config config, const BenchOptions& o) {
  config.gpu.enable_prefix_caching = false;  // every run computes its prompt
  for (const int n : o.batch) config.gpu.max_num_seqs = std::max(config.gpu.max_num_seqs, n);
  Result<std::unique_ptr<Llm>> llm = Llm::load(config);
  if (!llm) return report(llm.error());
  const int needed = std::max({o.prefill + 1, o.decode + 2, o.batch_prompt + o.decode + 1});
  if (needed > (*llm)->max_model_len)
    return report(make_error(ErrorCode::kConfig,
                             "bench: the tests need a context of {}, the model has {}: ask for less", needed,
                             (*llm)->max_model_len));
  Bench bench(**llm);
  Result<json::array> results = measure_all(bench, o);
  if (!results) return report(results.error());
  const json::object out{
      {"version", version()}, {"model", (*llm)->names[0]}, {"results", std::move(*results)}};
  std::printf("%s\n", json::serialize(out).c_str());
  return 0;
}

}  // namespace deepinfer
