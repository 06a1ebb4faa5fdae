// What `deepinfer doctor` tells: one line for each thing that it looked at.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace deepinfer::doctor {

enum class Level : uint8_t {
  kOk,
  kWarning,  // it works, but slower or less safely than it could
  kProblem   // serve would not start, or not on the device that was asked for
};

struct Finding {
  Level level = Level::kOk;
  std::string topic;    // "CPU governor"
  std::string text;     // what is the case, and what that means
  std::string command;  // that mends it; empty: there is nothing to mend, or no command does
};

Finding ok(std::string topic, std::string text);
Finding warning(std::string topic, std::string text, std::string command = {});
Finding problem(std::string topic, std::string text, std::string command = {});

int count(std::span<const Finding> findings, Level level);

std::string findings_text(std::span<const Finding> findings);
// {"problems", "warnings", "findings": [{"level", "topic", "text", "command"}]}
std::string findings_json(std::span<const Finding> findings);

// "1.5 GiB", "96 MiB".
std::string size_text(int64_t bytes);

}  // namespace deepinfer::doctor
