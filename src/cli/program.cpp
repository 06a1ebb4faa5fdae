#include "cli/program.h"

#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <optional>
#include <string>

#include "base/log.h"
#include "cli/batch_command.h"
#include "cli/bench_command.h"
#include "cli/config_command.h"
#include "cli/config_flags.h"
#include "cli/doctor_command.h"
#include "cli/estimate_command.h"
#include "cli/exit_code.h"
#include "cli/gpu_info_command.h"
#include "cli/hub_commands.h"
#include "cli/load_settings.h"
#include "cli/quantize_command.h"
#include "cli/resolve_model.h"
#include "cli/run_command.h"
#include "cli/serve_banner.h"
#include "cli/serve_command.h"
#include "cli/tune_command.h"
#include "deepinfer/version.h"
#include "model/random_checkpoint.h"

namespace deepinfer {
namespace {

// The settings of this process, with the log set up; the exit code when they are wrong.
int with_settings(const ConfigFlags& flags, const std::function<int(const LoadedConfig&)>& command) {
  const Result<LoadedConfig> loaded = load_settings(flags);
  if (!loaded) return report(loaded.error());
  set_log_level(loaded->config.server.log_level);
  set_log_format(loaded->config.server.log_format == "json" ? LogFormat::kJson : LogFormat::kText);
  for (const std::string& warning : loaded->warnings) log::warn("{}", warning);
  return command(*loaded);
}

// Commands that print their own output: the log of loading only disturbs, unless asked for.
int quietly(const ConfigFlags& flags, const std::function<int(const Config&)>& command) {
  return with_settings(flags, [&](const LoadedConfig& loaded) {
    if (loaded.origin.at("server.log_level") == "built-in") set_log_level("warning");
    return command(loaded.config);
  });
}

// The model is looked up first, and fetched when it is missing.
int with_model(const ConfigFlags& flags, const std::function<int(const Config&)>& command) {
  return quietly(flags, [&](Config config) {
    const Result<void> resolved = resolve_model(config);
    return resolved ? command(config) : report(resolved.error());
  });
}

int parse_error(const CLI::App& app, const CLI::ParseError& error) {
  const auto given = app.get_subcommands();
  const CLI::App& command = given.empty() ? app : *given.front();
  if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
  if (given.empty() && !app.remaining().empty() && !app.remaining().front().starts_with('-')) {
    std::fprintf(
        stderr,
        "deepinfer: unknown command '%s', expected serve, run, batch, bench, tune, estimate, quantize, pull, "
        "list, rm, config, doctor or gpu-info\n",
        app.remaining().front().c_str());
    return 2;
  }
  std::string hint;
  for (const std::string& unknown : command.remaining())
    if (unknown.starts_with('-') && hint.empty()) hint = flag_hint(command, unknown);
  const std::string name = given.empty() ? "deepinfer" : "deepinfer " + command.get_name();
  std::fprintf(stderr, "%s: %s%s\n'%s --help' lists what it takes.\n", name.c_str(), error.what(),
               hint.c_str(), name.c_str());
  return 2;
}

// The commands for models on disk.
class HubFlags {
 public:
  explicit HubFlags(CLI::App& app)
      : pull_(
            app.add_subcommand("pull", "Fetch a model from the Hugging Face hub, or what is missing of it")),
        list_(app.add_subcommand("list", "Print the models on this machine")),
        rm_(app.add_subcommand("rm", "Remove a model from this machine")) {
    pull_
        ->add_option("model", pull_options_.model, "ORG/NAME, or ORG/NAME:FILE with a file or a quantization")
        ->required();
    pull_->add_option("--revision", pull_options_.revision, "Branch, tag or commit [main]");
    pull_->add_option("--connections", pull_options_.connections, "Connections at a time")
        ->check(CLI::Range(1, 64))
        ->capture_default_str();
    rm_->add_option("model", rm_model_, "ORG/NAME, or ORG/NAME:FILE")->required();
    rm_->add_flag("-y,--yes", rm_yes_, "Do not ask");
  }

  // The exit code, when one of them was given.
  std::optional<int> run() const {
    if (pull_->parsed()) return pull_command(pull_options_);
    if (list_->parsed()) return list_command();
    if (rm_->parsed()) return rm_command(rm_model_, rm_yes_);
    return std::nullopt;
  }

 private:
  CLI::App* pull_;
  CLI::App* list_;
  CLI::App* rm_;
  PullOptions pull_options_;
  std::string rm_model_;
  bool rm_yes_ = false;
};

class QuantizeFlags {
 public:
  explicit QuantizeFlags(CLI::App& app)
      : app_(app.add_subcommand("quantize", "Make a quantized checkpoint of a model")) {
    quantize::Options& o = command_.options;
    app_->add_option("--model", command_.model, "Hugging Face folder or ORG/NAME, F32, F16 or BF16")
        ->required();
    app_->add_option("--method", command_.method, "awq, gptq, fp8 or int4")->required();
    app_->add_option("--out", command_.out, "The result's folder, new or empty")->required();
    app_->add_option("--calibration", command_.calibration,
                     "Text (.txt) or a text a line (.jsonl) for awq and gptq; left out: the one that ships");
    app_->add_option("--group-size", o.group,
                     "Columns that share a scale: 32, 64, 128, -1 for a whole row [128 where it divides]");
    app_->add_option("--samples", o.samples, "Samples of the calibration text, at most")
        ->capture_default_str();
    app_->add_option("--sample-tokens", o.sample_tokens, "Tokens of a sample")->capture_default_str();
    app_->add_flag("--act-order", o.act_order, "gptq: columns of the largest inputs first (desc_act)");
    app_->add_option("--threads", o.threads, "Threads; 0: what the machine allows")
        ->check(CLI::Range(0, 1024))
        ->capture_default_str();
    app_->add_flag("--estimate", command_.estimate_only, "Print the cost and stop");
  }

  std::optional<int> run() const {
    return app_->parsed() ? std::optional(quantize_command(command_)) : std::nullopt;
  }

 private:
  CLI::App* app_;
  QuantizeCommand command_;
};

class BatchFlags {
 public:
  explicit BatchFlags(CLI::App& app) : app_(add(app, options_)), flags_(*app_) {}

  std::optional<int> run() const {
    if (!app_->parsed()) return std::nullopt;
    return quietly(flags_, [this](const Config& config) { return batch_command(config, options_); });
  }

 private:
  static CLI::App* add(CLI::App& app, BatchOptions& options) {
    CLI::App* batch = app.add_subcommand("batch", "Answer a file of requests, in OpenAI's batch format");
    batch->add_option("-i,--input", options.input, "Requests, a line of JSON each")->required();
    batch->add_option("-o,--output", options.output, "Results; a second run goes on where the first ended")
        ->required();
    batch->add_option("--errors", options.errors, "What failed [OUTPUT.errors.jsonl]");
    return batch;
  }

  BatchOptions options_;
  CLI::App* app_;
  ConfigFlags flags_;
};

int run(int argc, char** argv) {
  CLI::App app("Serves large language models.");
  app.set_version_flag("--version", std::string("deepinfer ") + version());
  app.require_subcommand(1);

  CLI::App* serve = app.add_subcommand("serve", "Serve a model with the OpenAI API");
  const ConfigFlags serve_flags(*serve);

  RunOptions run_options;
  CLI::App* chat = app.add_subcommand("run", "Answer one prompt, or chat at the terminal");
  chat->add_option("prompt", run_options.prompt, "The prompt; left out: chat, or read standard input");
  chat->add_option("--system", run_options.system, "System message");
  chat->add_flag("--raw", run_options.raw, "Continue the prompt as it is, without the chat template");
  const ConfigFlags run_flags(*chat);

  BatchFlags batch(app);

  BenchOptions bench_options;
  CLI::App* bench = app.add_subcommand("bench", "Measure the engine's speed without a server; prints JSON");
  bench->add_option("--prefill", bench_options.prefill, "Tokens of the prefill test, 0: none; several tests")
      ->capture_default_str();
  bench->add_option("--decode", bench_options.decode, "Tokens that a sequence generates, 0: none")
      ->capture_default_str();
  bench->add_option("--batch", bench_options.batch, "Sequences that decode together; several tests")
      ->capture_default_str();
  bench->add_option("--batch-prompt", bench_options.batch_prompt, "Tokens of each prompt in them")
      ->capture_default_str();
  bench->add_option("--repeat", bench_options.repeat, "Runs of each test; the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  bench->add_option(
      "--random-weights", bench_options.random_weights,
      "Weights of a shape instead of a model: " + fmt::format("{}", fmt::join(random_shapes(), ", ")));
  bench->add_option("--save", bench_options.save,
                    "Write these weights to a folder, as a Hugging Face checkpoint");
  CLI::Option* profile = bench
                             ->add_option("--profile", bench_options.profile_file,
                                          "Record the tests, write a trace (FILE, or a new one in "
                                          "--profile-dir) and print where the time went")
                             ->type_name("FILE")
                             ->expected(0, 1);
  bench
      ->add_option("--copy-rate", bench_options.copy_rate,
                   "GB/s that the device copies, for the floors; a GPU is measured")
      ->check(CLI::NonNegativeNumber);
  bench
      ->add_option("--matmul-rate", bench_options.matmul_rate,
                   "TFLOP/s that it multiplies, for the floors; a GPU is measured")
      ->check(CLI::NonNegativeNumber);
  const ConfigFlags bench_flags(*bench);

  TuneCommandOptions tune_options;
  CLI::App* tune = app.add_subcommand("tune", "Measure which settings are best here, and write them as YAML");
  add_tune_options(*tune, tune_options);
  const ConfigFlags tune_flags(*tune);

  const EstimateCommand estimate(app);
  const QuantizeFlags quantize(app);
  const HubFlags hub(app);

  bool markdown = false;
  CLI::App* config = app.add_subcommand("config", "Print every setting with where its value comes from");
  config->add_flag("--markdown", markdown, "Print the page of all settings instead");
  const ConfigFlags config_flags(*config);

  DoctorOptions doctor_options;
  CLI::App* doctor =
      app.add_subcommand("doctor", "Look for what keeps a model from running, or makes it slow");
  doctor->add_flag("--json", doctor_options.json, "Print JSON instead of lines");
  doctor->add_flag("--hub", doctor_options.hub, "Ask the model hub too, over the network");
  const ConfigFlags doctor_flags(*doctor);

  bool json = false;
  CLI::App* gpu_info = app.add_subcommand("gpu-info", "Print the GPUs of this machine and what suits them");
  gpu_info->add_flag("--json", json, "Print JSON instead of a table");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return parse_error(app, error);
  }
  if (serve->parsed())
    return with_settings(serve_flags,
                         [](const LoadedConfig& c) { return serve_command(c.config, chosen_settings(c)); });
  if (chat->parsed())
    return with_model(run_flags, [&](const Config& c) { return run_command(c, run_options); });
  bench_options.profile = profile->count() > 0;
  if (bench->parsed())
    return with_model(bench_flags, [&](const Config& c) { return bench_command(c, bench_options); });
  if (tune->parsed())
    return with_model(tune_flags, [&](const Config& c) { return tune_command(c, tune_options); });
  if (const std::optional<int> code = batch.run()) return *code;
  if (const std::optional<int> code = estimate.run()) return *code;
  if (const std::optional<int> code = quantize.run()) return *code;
  if (const std::optional<int> code = hub.run()) return *code;
  if (doctor->parsed()) return doctor_command(doctor_flags, doctor_options);
  if (gpu_info->parsed()) return gpu_info_command(json);
  return config_command(config_flags, markdown);
}

}  // namespace

int run_program(int argc, char** argv) {
  // CUDA numbers GPUs as nvidia-smi and NVML do, unless the user wants another order.
  setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 0);
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "deepinfer: internal error, please report it: %s\n", e.what());
    return 1;
  }
}

}  // namespace deepinfer
