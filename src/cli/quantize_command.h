// deepinfer quantize: makes a quantized checkpoint of a model.
#pragma once

#include <string>

#include "quantize/options.h"

namespace deepinfer {

struct QuantizeCommand {
  std::string model;   // a folder, or a model of a hub, which is fetched when it is missing
  std::string method;  // awq, gptq, fp8, int4
  std::string out, calibration;
  bool estimate_only = false;
  quantize::Options options;  // the rest; the names above are put into it
};

// Returns the exit code: 130 after Ctrl-C, which leaves what is finished for the next time.
int quantize_command(const QuantizeCommand& command);

}  // namespace deepinfer
