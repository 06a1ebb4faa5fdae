// What the server would listen on, who has it already, and (only when asked for) whether the hub answers.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "deepinfer/config.h"
#include "doctor/finding.h"
#include "hub/settings.h"

namespace deepinfer::doctor {

struct PortHolder {
  int pid = 0;       // 0: somebody, who is not to be seen
  std::string name;  // of the program
};

// Who listens on a TCP port, from /proc below `root`. Another user's process is not to be seen.
std::optional<PortHolder> port_holder(const std::filesystem::path& root, int port);

// Tries to listen there, as the server would.
Finding check_port(const Config::Server& server, const std::optional<PortHolder>& holder);

// Whether strangers could use the server.
Finding check_exposure(const Config::Server& server);

// One request to the hub's address.
Finding check_hub(const hub::Settings& settings);

}  // namespace deepinfer::doctor
