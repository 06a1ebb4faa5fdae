#include "cli/tune_command.h"

#include <fmt/chrono.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>

#include "base/check.h"
#include "cli/exit_code.h"
#include "cli/interrupt.h"
#include "tune/report.h"
#include "tune/tuner.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

// A file that is there when it is complete. Opening it tells early that it cannot be written.
class OutFile {
 public:
  static Result<OutFile> open(const fs::path& path) {
    std::error_code ec;
    if (fs::is_directory(path, ec))
      return make_error(ErrorCode::kConfig, "--out: {} is a folder, expected a file", path.string());
    OutFile out(path);
    if (!std::ofstream(out.part()))
      return make_error(ErrorCode::kConfig,
                        "--out: {} cannot be written: expected a folder that is there and "
                        "may be written to",
                        path.string());
    return out;
  }
  OutFile(OutFile&& o) noexcept : path_(std::exchange(o.path_, {})) {}
  OutFile& operator=(OutFile&&) = delete;
  ~OutFile() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove(part(), ignored);
  }

  Result<void> write(const std::string& text) const {
    {
      std::ofstream file(part(), std::ios::binary);
      file << text;
      file.close();
      if (!file)
        return make_error(ErrorCode::kConfig, "{}: cannot be written: is there room?", path_.string());
    }
    std::error_code ec;
    fs::rename(part(), path_, ec);
    if (ec) return make_error(ErrorCode::kConfig, "{}: cannot be written: {}", path_.string(), ec.message());
    return {};
  }

 private:
  explicit OutFile(fs::path path) : path_(std::move(path)) {}
  fs::path part() const { return path_.string() + ".part"; }
  fs::path path_;
};

std::string clock_text(double seconds) {
  const auto s = static_cast<int>(seconds);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

// A line a run on standard error, with the time that is used up.
class Progress {
 public:
  explicit Progress(double minutes) : budget_(clock_text(minutes * 60)) {}

  void note(const std::string& line) const { std::fprintf(stderr, "%s\n", line.c_str()); }
  void show(const std::vector<tune::Axis>& axes, const tune::Trial& trial, bool best, double elapsed) const {
    std::fprintf(stderr, "[%s of %s] %s: %s%s\n", clock_text(elapsed).c_str(), budget_.c_str(),
                 tune::point_text(axes, trial.point).c_str(), tune::trial_text(trial).c_str(),
                 best ? "  <- best" : "");
  }

 private:
  std::string budget_;
};

std::string today() {
  return fmt::format("{:%Y-%m-%d}", fmt::gmtime(std::time(nullptr)));
}

Result<int> run(const Config& config, const TuneCommandOptions& o) {
  tune::TuneOptions options{.workload = o.workload, .concurrency = o.concurrency, .minutes = o.minutes};
  if (!o.slo.empty()) {
    DI_ASSIGN(options.slo, tune::parse_slo(o.slo));
  }
  const fs::path plot = fs::path(o.out).replace_extension(".svg");
  if (plot == fs::path(o.out))
    return make_error(ErrorCode::kConfig, "--out: got {}, expected a name that ends in .yaml", o.out);
  DI_ASSIGN(const OutFile out, OutFile::open(o.out));
  DI_ASSIGN(const OutFile plot_out, OutFile::open(plot));
  const Progress progress(o.minutes);
  const tune::TuneHooks hooks{
      .interrupted = interrupted,
      .note = [&](const std::string& line) { progress.note(line); },
      .on_trial = [&](const std::vector<tune::Axis>& axes, const tune::Trial& trial, bool best,
                      double elapsed) { progress.show(axes, trial, best, elapsed); }};
  DI_ASSIGN(const tune::TuneResult result, tune::tune(config, options, hooks));
  DI_TRY(out.write(tune::yaml(result, options.slo, today())));
  DI_TRY(plot_out.write(tune::svg(result, options.slo)));
  if (o.json) {
    json::object text = tune::to_json(result, options.slo);
    text["out"] = o.out;
    text["plot"] = plot.string();
    std::printf("%s\n", json::serialize(text).c_str());
  } else {
    std::printf("%s\n", tune::table(result, options.slo).c_str());
  }
  const bool nearest = options.slo.any() && !result.outcome.slo_met;
  if (nearest)
    std::fprintf(stderr, "deepinfer: no settings meet the SLO; the nearest: %s\n",
                 tune::point_text(result.axes, result.outcome.trials[*result.outcome.best].point).c_str());
  if (result.outcome.end == tune::End::kInterrupted)
    std::fprintf(stderr, "deepinfer: interrupted, the best so far is written\n");
  std::fprintf(stderr, "%s: deepinfer serve --config %s; the plot: %s\n", o.out.c_str(), o.out.c_str(),
               plot.c_str());
  if (result.outcome.end == tune::End::kInterrupted) return kInterruptedExit;
  return nearest ? 1 : 0;
}

}  // namespace

void add_tune_options(CLI::App& command, TuneCommandOptions& o) {
  command
      .add_option(
          "--workload", o.workload,
          "chat, batch, long-context, or a JSONL file of requests (OpenAI bodies, or prompt_tokens and "
          "max_tokens)")
      ->capture_default_str();
  command.add_option("--slo", o.slo, "Limits of the 99th percentiles in seconds, as in ttft=0.5,itl=0.05");
  command.add_option("--minutes", o.minutes, "Time for all of it")
      ->check(CLI::Range(0.05, 10080.0))
      ->capture_default_str();
  command.add_option("--concurrency", o.concurrency, "Requests at a time; 0: the workload's own")
      ->check(CLI::Range(0, 65536))
      ->capture_default_str();
  command.add_option("--out", o.out, "The YAML file to write; a plot (.svg) comes beside it")
      ->capture_default_str();
  command.add_flag("--json", o.json, "Print JSON instead of a table");
}

int tune_command(const Config& config, const TuneCommandOptions& options) {
  catch_interrupts();
  const Result<int> code = run(config, options);
  if (code) return *code;
  if (code.error().code != ErrorCode::kCancelled) return report(code.error());
  std::fprintf(stderr, "deepinfer: interrupted before anything was measured, nothing was written\n");
  return kInterruptedExit;
}

}  // namespace deepinfer
