#include "cli/quantize_command.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "base/check.h"
#include "cli/exit_code.h"
#include "cli/interrupt.h"
#include "cli/resolve_model.h"
#include "cli/stats_line.h"
#include "quantize/quantize.h"

namespace deepinfer {
namespace {

std::string size(int64_t bytes) {
  const auto mib = static_cast<double>(bytes) / (1024.0 * 1024.0);
  return mib < 1024 ? fmt::format("{:.0f} MiB", mib) : fmt::format("{:.1f} GiB", mib / 1024);
}

void print_plan(const quantize::Plan& p) {
  const ModelConfig& c = p.checkpoint.config;
  const std::string group = p.options.method == quantize::Method::kFp8 ? "one scale a row"
                            : p.group == 0                             ? "groups of a whole row"
                                           : fmt::format("groups of {} columns", p.group);
  std::fprintf(stderr, "%s: %d layers to %s, %s, %d threads\n", p.options.model.c_str(), c.layers,
               std::string(method_name(p.options.method)).c_str(), group.c_str(), p.threads);
  if (p.group != 0 && p.options.group == 0 && p.group != 128)
    std::fprintf(stderr, "128 does not divide the columns of this model's linears: groups of %lld do\n",
                 static_cast<long long>(p.group));
  if (p.samples.count() > 0)
    std::fprintf(stderr, "calibration: %lld samples of %lld tokens from %s\n",
                 static_cast<long long>(p.samples.count()), static_cast<long long>(p.samples.length),
                 p.options.calibration.c_str());
  std::fprintf(stderr, "about %s, %s of memory, %s of disk while it runs, %s for the result\n",
               p.seconds > 0 ? duration(p.seconds).c_str() : "the time of reading and writing",
               size(p.memory_bytes).c_str(), size(p.disk_bytes).c_str(), size(p.out_bytes).c_str());
}

// A line a layer; on a terminal one line that changes.
class LayerProgress {
 public:
  void show(int finished, int layers) {
    const auto now = std::chrono::steady_clock::now();
    if (first_ < 0) {
      first_ = finished;
      start_ = now;
      if (finished > 0)
        std::fprintf(stderr, "%d of %d layers were finished before, going on\n", finished, layers);
      return;
    }
    const double seconds = std::chrono::duration<double>(now - start_).count();
    const double left = seconds / (finished - first_) * (layers - finished);
    const bool terminal = isatty(STDERR_FILENO) != 0;
    std::fprintf(stderr, "%s%d of %d layers, %s, about %s left%s", terminal ? "\r" : "", finished, layers,
                 duration(seconds).c_str(), duration(left).c_str(),
                 terminal && finished < layers ? "   " : "\n");
    std::fflush(stderr);
  }

 private:
  int first_ = -1;  // layers that were finished at the start
  std::chrono::steady_clock::time_point start_;
};

Result<quantize::Method> parse_method(const std::string& name) {
  for (const quantize::Method m :
       {quantize::Method::kAwq, quantize::Method::kGptq, quantize::Method::kFp8, quantize::Method::kInt4})
    if (name == method_name(m)) return m;
  return make_error(ErrorCode::kConfig, "quantize: --method: got '{}', expected awq, gptq, fp8 or int4",
                    name);
}

Result<void> run(const QuantizeCommand& command) {
  quantize::Options options = command.options;
  DI_ASSIGN(options.method, parse_method(command.method));
  Config config;
  config.model.name = command.model;
  DI_TRY(resolve_model(config));
  options.model = config.model.name;
  options.out = command.out;
  options.calibration = command.calibration;
  DI_ASSIGN(const quantize::Plan plan, quantize::make_plan(options));
  print_plan(plan);
  if (command.estimate_only) return {};
  LayerProgress progress;
  DI_TRY(quantize::quantize(plan, {.progress = [&](int done, int layers) { progress.show(done, layers); },
                                   .stopped = interrupted}));
  std::printf("%s\n", options.out.c_str());
  return {};
}

}  // namespace

int quantize_command(const QuantizeCommand& command) {
  catch_interrupts();
  const Result<void> done = run(command);
  if (done) return 0;
  if (interrupted() && done.error().code == ErrorCode::kCancelled) {
    std::fprintf(stderr, "\ndeepinfer: stopped; the same command goes on where it was\n");
    return kInterruptedExit;
  }
  return report(done.error());
}

}  // namespace deepinfer
