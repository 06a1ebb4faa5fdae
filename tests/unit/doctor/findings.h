// How the tests of findings look at them.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "doctor/finding.h"

namespace deepinfer::doctor {

inline void expect(const Finding& f, Level level, const std::string& words, const std::string& command = "") {
  EXPECT_EQ(static_cast<int>(f.level), static_cast<int>(level)) << f.topic << ": " << f.text;
  EXPECT_THAT(f.text, testing::HasSubstr(words)) << f.topic;
  EXPECT_THAT(f.command, testing::HasSubstr(command)) << f.topic;
  if (level == Level::kOk) EXPECT_EQ(f.command, "") << f.topic;
}

// The one with this topic.
inline Finding of(const std::vector<Finding>& all, const std::string& topic) {
  const auto it = std::find_if(all.begin(), all.end(), [&](const Finding& f) { return f.topic == topic; });
  if (it != all.end()) return *it;
  ADD_FAILURE() << "no finding " << topic;
  return {};
}

inline bool has(const std::vector<Finding>& all, const std::string& topic) {
  return std::any_of(all.begin(), all.end(), [&](const Finding& f) { return f.topic == topic; });
}

}  // namespace deepinfer::doctor
