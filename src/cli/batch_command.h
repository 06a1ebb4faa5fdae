// deepinfer batch: a file of OpenAI's requests, answered without a server.
#pragma once

#include <string>

#include "deepinfer/config.h"

namespace deepinfer {

struct BatchOptions {
  std::string input, output;
  std::string errors;  // empty: out.jsonl -> out.errors.jsonl
};

// Goes on where an earlier run with the same files ended. Returns the exit code: 0 when every request of the
// batch has its result, 1 when some failed, 130 after Ctrl-C.
int batch_command(Config config, const BatchOptions& options);

}  // namespace deepinfer
