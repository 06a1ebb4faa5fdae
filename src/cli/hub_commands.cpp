#include "cli/hub_commands.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <iostream>
#include <optional>

#include "base/check.h"
#include "base/paths.h"
#include "cli/exit_code.h"
#include "cli/interrupt.h"
#include "hub/list.h"
#include "hub/model_ref.h"
#include "hub/pull.h"
#include "hub/remove.h"

namespace deepinfer {
namespace {

Result<hub::Pulled> pull_now(const PullOptions& options) {
  DI_ASSIGN(const hub::ModelRef ref, hub::parse_model_ref(options.model));
  DI_ASSIGN(hub::Settings settings, hub::settings_from_environment());
  settings.connections = options.connections;
  hub::Progress progress(stderr, ref.text());
  return hub::pull(settings, ref, options.revision, progress, interrupted);
}

bool asked(const std::string& question) {
  std::printf("Remove %s\n[y/N] ", question.c_str());
  std::fflush(stdout);
  std::string answer;
  std::getline(std::cin, answer);
  return answer == "y" || answer == "Y" || answer == "yes";
}

Result<hub::Removal> plan(const hub::Settings& settings, const std::string& model) {
  if (model == kDefaultModelName) return hub::plan_default_removal(settings);
  DI_ASSIGN(const hub::ModelRef ref, hub::parse_model_ref(model));
  return hub::plan_removal(settings, ref);
}

}  // namespace

int pull_command(const PullOptions& options) {
  catch_interrupts();
  const Result<hub::Pulled> pulled = pull_now(options);
  if (!pulled && interrupted()) {
    std::fprintf(stderr, "deepinfer: stopped; the same command goes on where it was\n");
    return kInterruptedExit;
  }
  if (!pulled) return report(pulled.error());
  if (pulled->fetched == 0) std::fprintf(stderr, "%s: up to date\n", options.model.c_str());
  std::printf("%s\n", pulled->path.c_str());
  return 0;
}

int list_command() {
  const Result<hub::Settings> settings = hub::settings_from_environment();
  if (!settings) return report(settings.error());
  const std::string text = hub::list_text(hub::list_models(*settings), std::chrono::system_clock::now());
  std::fputs(text.c_str(), stdout);
  return 0;
}

int rm_command(const std::string& model, bool yes) {
  const Result<hub::Settings> settings = hub::settings_from_environment();
  if (!settings) return report(settings.error());
  const Result<hub::Removal> removal = plan(*settings, model);
  if (!removal) return report(removal.error());
  if (!yes && isatty(STDIN_FILENO) == 0)
    return report(make_error(ErrorCode::kConfig,
                             "rm: nobody to ask here, nothing was removed: add --yes to remove {}",
                             removal->text()));
  if (!yes && !asked(removal->text())) {
    std::printf("Nothing was removed.\n");
    return 0;
  }
  if (const Result<void> done = hub::remove(*settings, *removal); !done) return report(done.error());
  std::printf("Removed %s\n", removal->text().c_str());
  return 0;
}

}  // namespace deepinfer
