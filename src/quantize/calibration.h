// Text as samples of tokens of one length, on which the layers' inputs are observed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "deepinfer/result.h"
#include "text/tokenizer.h"

namespace deepinfer::quantize {

constexpr int64_t kLeastSamples = 8;

struct CalibrationSpec {
  std::filesystem::path
      file;               // .jsonl: a text ("text", or "messages" with "content") a line; else plain text
  int64_t samples = 128;  // at most; spread evenly over a longer text
  int64_t length = 512;   // tokens of a sample, the beginning-of-text token included where the model has it
};

struct Samples {
  int64_t length = 0;
  std::vector<int32_t> tokens;  // [samples, length]
  int64_t count() const { return length == 0 ? 0 : static_cast<int64_t>(tokens.size()) / length; }
};

// kNotFound, kConfig: no such file, a line that is not JSON or has no text, or fewer than kLeastSamples.
Result<Samples> read_calibration(const Tokenizer& tokenizer, const CalibrationSpec& spec);

// The text that comes with the program: <prefix>/share/deepinfer/calibration.txt.
std::filesystem::path default_calibration();

}  // namespace deepinfer::quantize
