// deepinfer pull, list, rm: models on disk.
#pragma once

#include <string>

namespace deepinfer {

struct PullOptions {
  std::string model;     // ORG/NAME or ORG/NAME:FILE
  std::string revision;  // empty: main
  int connections = 8;
};

// Fetches what is missing and prints the path of the model. Returns the exit code: 3 when it cannot be had,
// 130 after Ctrl-C, which leaves what came for the next time.
int pull_command(const PullOptions& options);

int list_command();

// Asks at the terminal unless `yes`.
int rm_command(const std::string& model, bool yes);

}  // namespace deepinfer
