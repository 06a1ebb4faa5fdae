#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/config_flags.h"
#include "cli/exit_code.h"

namespace deepinfer {
namespace {

using testing::HasSubstr;

struct Parsed {
  Parsed() : app("test"), flags(app) { app.add_option("prompt", prompt, "the prompt"); }
  void parse(std::vector<std::string> args) {
    std::reverse(args.begin(), args.end());
    app.parse(args);
  }
  CLI::App app;
  std::string prompt;
  ConfigFlags flags;
};

std::vector<std::string> given(std::vector<std::string> args) {
  Parsed p;
  p.parse(std::move(args));
  std::vector<std::string> out;
  for (const FlagValue& v : p.flags.values()) out.push_back(v.name + "=" + v.text);
  return out;
}

TEST(ConfigFlags, CollectsWhatWasGiven) {
  using testing::ElementsAre;
  EXPECT_THAT(given({}), ElementsAre());
  EXPECT_THAT(given({"--model", "m.gguf", "--max-num-seqs=7"}),
              ElementsAre("model=m.gguf", "max-num-seqs=7"));
  EXPECT_THAT(given({"--port", "1", "--port", "2"}), ElementsAre("port=2"));
  EXPECT_THAT(given({"--presence-penalty", "-1.5"}), ElementsAre("presence-penalty=-1.5"));
  EXPECT_THAT(given({"--top-k", "-1"}), ElementsAre("top-k=-1"));
  EXPECT_THAT(given({"--api-key", "a", "hello", "--api-key", "b,c"}),
              ElementsAre("api-key=a", "api-key=b,c"));
}

TEST(ConfigFlags, Switches) {
  using testing::ElementsAre;
  EXPECT_THAT(given({"--enforce-eager"}), ElementsAre("enforce-eager=true"));
  EXPECT_THAT(given({"--no-enable-prefix-caching"}), ElementsAre("enable-prefix-caching=false"));
  EXPECT_THAT(given({"--enable-prefix-caching=false"}), ElementsAre("enable-prefix-caching=false"));
  EXPECT_THAT(given({"--enforce-eager", "--no-enforce-eager"}), ElementsAre("enforce-eager=false"));
}

TEST(ConfigFlags, ConfigIsKeptApart) {
  Parsed p;
  p.parse({"--config", "x.yaml", "hi"});
  EXPECT_EQ(p.flags.config(), std::filesystem::path("x.yaml"));
  EXPECT_EQ(p.prompt, "hi");
  EXPECT_TRUE(p.flags.values().empty());
  auto loaded = p.flags.load();
  ASSERT_FALSE(loaded.ok());
  EXPECT_THAT(loaded.error().message, HasSubstr("--config x.yaml: no such file"));
  EXPECT_EQ(exit_code(loaded.error().code), 2);
}

TEST(ConfigFlags, HelpHasEverySettingBySection) {
  Parsed p;
  const std::string help = p.app.help();
  for (const Key& key : keys()) EXPECT_THAT(help, HasSubstr(key.flag()));
  for (std::string_view section : sections())
    EXPECT_THAT(help, HasSubstr("Settings: " + std::string(section)));
  EXPECT_THAT(help, HasSubstr("[8000]"));
}

TEST(ConfigFlags, UnknownFlagsGetAHint) {
  Parsed p;
  EXPECT_EQ(flag_hint(p.app, "--max-num-seq=4"), " (did you mean --max-num-seqs?)");
  EXPECT_EQ(flag_hint(p.app, "--modle"), " (did you mean --model?)");
  EXPECT_EQ(flag_hint(p.app, "--zzzzzzzzzzz"), "");
}

}  // namespace
}  // namespace deepinfer
