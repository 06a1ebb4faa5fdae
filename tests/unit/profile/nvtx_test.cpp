// NVTX ranges as a tool sees them: this program is the tool, by a library that NVTX loads.
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "profile/profiler.h"

namespace deepinfer {
namespace {

using testing::ElementsAre;

// The ranges that the listener heard since the last call: "+qkv", "-".
std::vector<std::string> heard() {
  using Take = const char*();
  void* library = dlopen(NVTX_LISTENER, RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) return {"the listener was not loaded"};
  auto* take = reinterpret_cast<Take*>(dlsym(library, "take_ranges"));
  std::vector<std::string> out;
  std::string all = take();
  dlclose(library);
  for (size_t begin = 0; begin < all.size();) {
    const size_t end = all.find('\n', begin);
    out.push_back(all.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

TEST(Nvtx, RangesHaveTheNamesOfTheTraceWhileNothingIsRecorded) {
  unsetenv("NVTX_INJECTION64_PATH");
  EXPECT_FALSE(Profiler({}).active()) << "nobody listens";
  setenv("NVTX_INJECTION64_PATH", NVTX_LISTENER, 1);
  Profiler profiler({});
  EXPECT_TRUE(profiler.active());
  EXPECT_FALSE(profiler.recording());
  {
    const Span forward(&profiler, Phase::kForward, 1, 2, 3);
    {
      const Span qkv(&profiler, Phase::kQkv);
    }
    {
      const Span attention(&profiler, Phase::kAttention);
    }
  }
  EXPECT_THAT(heard(), ElementsAre("+forward", "+qkv", "-", "+attention", "-", "-"));
  ASSERT_TRUE(profiler.start().ok());
  {
    const Span head(&profiler, Phase::kHead);
  }
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / ("nvtx_" + std::to_string(getpid()) + ".json");
  EXPECT_EQ(profiler.stop(file)->events, 1u);
  std::filesystem::remove(file);
  EXPECT_THAT(heard(), ElementsAre("+head", "-"));
  EXPECT_TRUE(profiler.active()) << "the tool still listens";
}

}  // namespace
}  // namespace deepinfer
