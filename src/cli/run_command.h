// deepinfer run: one prompt, or a chat at the terminal.
#pragma once

#include <string>

#include "deepinfer/config.h"

namespace deepinfer {

struct RunOptions {
  std::string
      prompt;  // empty: interactive when standard input is a terminal, else standard input is the prompt
  std::string system;  // system message
  bool raw = false;    // the prompt as it is, without the chat template
};

// Returns the exit code.
int run_command(const Config& config, const RunOptions& options);

}  // namespace deepinfer
