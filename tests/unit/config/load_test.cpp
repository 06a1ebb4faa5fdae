#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <set>
#include <sstream>

#include "base/paths.h"
#include "config/config.h"
#include "config/value.h"
#include "config/yaml.h"

namespace deepinfer {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class LoadTest : public testing::Test {
 protected:
  LoadTest() : folder_(testing::TempDir() + "di_config_" + std::to_string(getpid())) {
    std::filesystem::create_directories(folder_);
  }
  ~LoadTest() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path write(const std::string& name, const std::string& text) {
    const auto path = folder_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
    return path;
  }

  std::string yaml_error(const std::string& text) {
    auto loaded = load_config({.yaml = write("e.yaml", text)});
    return loaded.ok() ? "(no error)" : loaded.error().message;
  }

  std::filesystem::path folder_;
};

std::string env_error(const std::string& name, const std::string& value) {
  auto loaded = load_config({.environment = {{name, value}}});
  if (loaded.ok()) return "(no error)";
  EXPECT_EQ(loaded.error().code, ErrorCode::kConfig);
  return loaded.error().message;
}

TEST_F(LoadTest, LaterSourcesWin) {
  const auto yaml = write("my.yaml", "gpu:\n  max_num_seqs: 10\n  block_size: 32\nserver:\n  port: 1\n");
  ConfigSources sources{.yaml = yaml};
  auto loaded = load_config(sources);
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  EXPECT_EQ(loaded->config.gpu.max_num_seqs, 10);
  EXPECT_EQ(loaded->origin.at("gpu.max_num_seqs"), yaml.string() + ":2");
  EXPECT_EQ(loaded->origin.at("gpu.max_num_batched_tokens"), "this device (CPU)");
  EXPECT_EQ(loaded->origin.at("server.host"), "built-in");

  sources.environment = {{"DEEPINFER_MAX_NUM_SEQS", "11"}, {"DEEPINFER_SERVER__PORT", "2"}};
  loaded = load_config(sources);
  EXPECT_EQ(loaded->config.gpu.max_num_seqs, 11);
  EXPECT_EQ(loaded->config.server.port, 2);
  EXPECT_EQ(loaded->config.gpu.block_size, 32);
  EXPECT_EQ(loaded->origin.at("gpu.max_num_seqs"), "DEEPINFER_MAX_NUM_SEQS");

  sources.environment.emplace_back("DEEPINFER_GPU__MAX_NUM_SEQS",
                                   "12");  // the long form is the more exact one
  loaded = load_config(sources);
  EXPECT_EQ(loaded->config.gpu.max_num_seqs, 12);

  sources.flags = {{"max-num-seqs", "13"}, {"model", "x.gguf"}};
  loaded = load_config(sources);
  EXPECT_EQ(loaded->config.gpu.max_num_seqs, 13);
  EXPECT_EQ(loaded->config.model.name, "x.gguf");
  EXPECT_EQ(loaded->origin.at("gpu.max_num_seqs"), "--max-num-seqs");
  EXPECT_EQ(loaded->origin.at("model.name"), "--model");
}

TEST_F(LoadTest, WrongValuesSayWhatWhereAndExpected) {
  const auto file = (folder_ / "e.yaml").string();
  EXPECT_EQ(yaml_error("gpu:\n  max_num_seqs: -3\n"),
            "gpu.max_num_seqs: got -3, expected an integer from 1 to 65536 (" + file + ":2)");
  EXPECT_THAT(yaml_error("gpu:\n  max_num_seqs: \"512\"\n"),
              HasSubstr("got the text \"512\", expected an integer"));
  EXPECT_THAT(yaml_error("gpu:\n  max_num_seqs: 1.5\n"), HasSubstr("got 1.5"));
  EXPECT_THAT(yaml_error("gpu:\n  max_num_seqs: 99999999999999999999\n"), HasSubstr("expected an integer"));
  EXPECT_THAT(yaml_error("gpu:\n  max_num_seqs: [1]\n"), HasSubstr("got a list of 1"));
  EXPECT_THAT(yaml_error("gpu:\n  max_num_seqs: auto\n"), HasSubstr("got auto"));
  EXPECT_THAT(yaml_error("gpu:\n  enforce_eager: 7\n"), HasSubstr("got 7, expected true or false"));
  EXPECT_THAT(yaml_error("gpu:\n  gpu_memory_utilization: 1.1\n"),
              HasSubstr("expected a number above 0 to 1"));
  EXPECT_THAT(yaml_error("gpu:\n  gpu_memory_utilization: .nan\n"), HasSubstr("got .nan"));
  EXPECT_THAT(yaml_error("gpu:\n  gpu_memory_utilization: nan\n"), HasSubstr("got nan"));
  EXPECT_THAT(yaml_error("server:\n  timeout: inf\n"), HasSubstr("got inf, expected a number from 0 up"));
  EXPECT_THAT(yaml_error("sampling:\n  top_p: 0\n"), HasSubstr("got 0, expected a number above 0 to 1"));
  EXPECT_THAT(yaml_error("gpu:\n  device: tpu\n"), HasSubstr("expected auto, cpu, cuda, cuda:N"));
  EXPECT_THAT(yaml_error("model:\n  quantization: q4\n"), HasSubstr("expected none, awq, gptq, fp8, int4"));
  EXPECT_THAT(yaml_error("gpu:\n  unknown_thing: 4\n"), HasSubstr(file + ":2: "));
  EXPECT_EQ(env_error("DEEPINFER_PORT", "http"),
            "server.port: got http, expected an integer from 0 to 65535 (DEEPINFER_PORT)");
  auto flag = load_config({.flags = {{"port", "65536"}}});
  ASSERT_FALSE(flag.ok());
  EXPECT_THAT(flag.error().message, HasSubstr("got 65536, expected an integer from 0 to 65535 (--port)"));
  EXPECT_FALSE(load_config({.flags = {{"gpu.port", "1"}}}).ok());
  EXPECT_FALSE(load_config({.flags = {{"max_num_seqs", "1"}}}).ok()) << "flags have dashes";
}

TEST_F(LoadTest, FilesThatCannotBeRead) {
  auto missing = load_config({.yaml = folder_ / "missing.yaml"});
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, ErrorCode::kConfig);
  EXPECT_THAT(missing.error().message,
              HasSubstr("missing.yaml: the configuration cannot be opened (No such file"));
  auto folder = load_config({.yaml = folder_});
  ASSERT_FALSE(folder.ok());
  EXPECT_THAT(folder.error().message, HasSubstr("a folder, expected a YAML file"));
}

TEST_F(LoadTest, AutoNullAndOptionals) {
  auto loaded =
      load_config({.yaml = write("my.yaml",
                                 "model:\n  max_model_len: auto\n  quantization: null\ncpu:\n  threads: "
                                 "Auto\nsampling:\n  temperature: 0\n  top_k: -1\n  top_p: null\n")});
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  EXPECT_EQ(loaded->config.model.max_model_len, 0);
  EXPECT_EQ(loaded->config.cpu.threads, 0);
  EXPECT_EQ(loaded->config.sampling.temperature, 0.0);
  EXPECT_EQ(loaded->config.sampling.top_k, -1);
  EXPECT_FALSE(loaded->config.sampling.top_p.has_value());
  EXPECT_EQ(loaded->origin.at("model.quantization"), "built-in");
  EXPECT_FALSE(load_config({.environment = {{"DEEPINFER_THREADS", "0"}}}).ok()) << "zero threads is no auto";
}

TEST_F(LoadTest, SpellingsOfTheOlderProject) {
  auto loaded =
      load_config({.yaml = write("my.yaml",
                                 "model:\n  name: m\n  trust_remote_code: false\n  dtype: half\n"
                                 "  quantization: AWQ\ngpu:\n  kv_cache_dtype: \"fp8_e4m3\"\n"
                                 "  nvidia_5090_optimizations: yes\nserver:\n  log_level: WARN\n")});
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  EXPECT_EQ(loaded->config.model.dtype, "float16");
  EXPECT_EQ(loaded->config.model.quantization, "awq");
  EXPECT_EQ(loaded->config.gpu.kv_cache_dtype, "fp8");
  EXPECT_TRUE(loaded->config.gpu.nvidia_5090_optimizations);
  EXPECT_EQ(loaded->config.server.log_level, "warning");
}

TEST_F(LoadTest, RemoteCodeIsRefusedFromEverySource) {
  EXPECT_THAT(yaml_error("model:\n  trust_remote_code: true\n"), HasSubstr("never executes code"));
  EXPECT_THAT(env_error("DEEPINFER_TRUST_REMOTE_CODE", "true"), HasSubstr("(DEEPINFER_TRUST_REMOTE_CODE)"));
  EXPECT_FALSE(load_config({.flags = {{"trust-remote-code", "true"}}}).ok());
}

TEST_F(LoadTest, ListsFromEverySource) {
  auto loaded = load_config({.yaml = write("my.yaml", "model:\n  served_model_name: one\n")});
  EXPECT_THAT(loaded->config.model.served_model_name, ElementsAre("one"));
  loaded = load_config({.environment = {{"DEEPINFER_SERVED_MODEL_NAME", "a,b"}},
                        .flags = {{"api-key", "k1"}, {"api-key", "k2,k3"}}});
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  EXPECT_THAT(loaded->config.model.served_model_name, ElementsAre("a", "b"));
  EXPECT_THAT(loaded->config.server.api_key, ElementsAre("k1", "k2", "k3"));
  EXPECT_FALSE(load_config({.flags = {{"api-key", "k1,,k2"}}}).ok()) << "an empty key would open the server";
}

TEST_F(LoadTest, TheEnvironmentWarnsOfNamesThatNobodyReads) {
  auto loaded = load_config({.environment = {{"DEEPINFER_MAX_NUM_SEQ", "5"},
                                             {"DEEPINFER_CACHE_DIR", "/tmp"},
                                             {"DEEPINFER_CPU_ISA", "avx2"},
                                             {"DEEPINFER_API_KEY", ""},
                                             {"HOME", "/root"}}});
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  EXPECT_THAT(loaded->warnings,
              ElementsAre("DEEPINFER_MAX_NUM_SEQ: no setting has this variable, it is ignored; did you mean "
                          "DEEPINFER_MAX_NUM_SEQS?"));
  EXPECT_THAT(loaded->config.server.api_key, IsEmpty());
}

TEST_F(LoadTest, KubernetesServiceVariablesAreNotSettings) {
  auto loaded = load_config({.environment = {{"DEEPINFER_PORT", "tcp://10.96.0.7:8000"},
                                             {"DEEPINFER_PORT_8000_TCP", "tcp://10.96.0.7:8000"},
                                             {"DEEPINFER_SERVICE_HOST", "10.96.0.7"},
                                             {"DEEPINFER_SERVER__PORT", "9000"}}});
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  EXPECT_EQ(loaded->config.server.port, 9000);
  ASSERT_EQ(loaded->warnings.size(), 1u);
  EXPECT_THAT(loaded->warnings[0], HasSubstr("Kubernetes"));
}

TEST_F(LoadTest, SecretsAreNeverPrinted) {
  const std::string secret = "sk-very-secret";
  auto loaded = load_config({.environment = {{"DEEPINFER_API_KEY", secret + ",other-secret"}}});
  ASSERT_TRUE(loaded.ok());
  const std::string printed = print_config(*loaded);
  EXPECT_THAT(printed, testing::Not(HasSubstr("secret")));
  EXPECT_THAT(printed, HasSubstr("# DEEPINFER_API_KEY, 2 hidden"));
  const std::string error = env_error("DEEPINFER_API_KEY", secret + ",,");
  EXPECT_THAT(error, testing::Not(HasSubstr("secret")));
  EXPECT_THAT(error, HasSubstr("server.api_key: got a value that is not shown"));
}

TEST_F(LoadTest, WhatIsPrintedLoadsAgain) {
  ConfigSources sources{.flags = {{"model", "a b: \"c\" #\\.gguf"},
                                  {"served-model-name", "123,null,x"},
                                  {"temperature", "0.1"},
                                  {"revision", "1e5"},
                                  {"host", "::1"},
                                  {"enforce-eager", "true"},
                                  {"queue-timeout", "0.25"},
                                  {"max-model-len", "4096"}}};
  auto first = load_config(sources);
  ASSERT_TRUE(first.ok()) << first.error().message;
  const std::string printed = print_config(*first);
  auto second = load_config({.yaml = write("printed.yaml", printed)});
  ASSERT_TRUE(second.ok()) << second.error().message << "\n" << printed;
  for (const Key& key : keys())
    EXPECT_EQ(value_text(key, first->config), value_text(key, second->config)) << key.path();
}

TEST(Keys, TheTableIsConsistent) {
  std::set<std::string> names;
  for (const Key& key : keys()) {
    EXPECT_TRUE(names.insert(std::string(key.name)).second) << key.name << " stands in two sections";
    EXPECT_FALSE(key.text.empty()) << key.path();
    EXPECT_TRUE(key.text.ends_with(".")) << key.path();
    EXPECT_EQ(find_key(key.path()), &key);
    EXPECT_EQ(find_key(key.flag().substr(2)), &key);
    EXPECT_NE(std::find(sections().begin(), sections().end(), key.section), sections().end());
    const std::string value = key.default_text();
    if (value == "null" || value == "[]") {
      EXPECT_FALSE(key.unset.empty()) << key.path() << " says what holds when it is not set";
      continue;
    }
    Config config;  // each built-in value is one that its own row allows
    auto set = set_value(key, {.items = {value}}, "built-in", config);
    EXPECT_TRUE(set.ok()) << (set.ok() ? "" : set.error().message);
  }
}

// The two below count the fields of Config: a field without a row could not be set by anybody.
TEST(Keys, EveryFieldOfConfigHasARow) {
  const auto [model_size, gpu_size, server_size, sampling_size] = std::array{10, 15, 31, 8};
  std::map<std::string_view, int> count;
  for (const Key& key : keys()) ++count[key.section];
  Config c;
  auto& [name, served, revision, tokenizer, mode, chat, trust, dtype, len, quantization] = c.model;
  (void)name, (void)served, (void)revision, (void)tokenizer, (void)mode, (void)chat, (void)trust, (void)dtype,
      (void)len, (void)quantization;
  auto& [g1, g2, g3, g4, g5, g6, g7, g8, g9, g10, g11, g12, g13, g14, g15] = c.gpu;
  (void)g1, (void)g2, (void)g3, (void)g4, (void)g5, (void)g6, (void)g7, (void)g8, (void)g9, (void)g10,
      (void)g11, (void)g12, (void)g13, (void)g14, (void)g15;
  auto& [s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15, s16, s17, s18, s19, s20, s21, s22,
         s23, s24, s25, s26, s27, s28, s29, s30, s31] = c.server;
  (void)s1, (void)s2, (void)s3, (void)s4, (void)s5, (void)s6, (void)s7, (void)s8, (void)s9, (void)s10,
      (void)s11, (void)s12, (void)s13, (void)s14, (void)s15, (void)s16, (void)s17, (void)s18, (void)s19,
      (void)s20, (void)s21, (void)s22, (void)s23, (void)s24, (void)s25, (void)s26, (void)s27, (void)s28,
      (void)s29, (void)s30, (void)s31;
  auto& [a1, a2, a3, a4, a5, a6, a7, a8] = c.sampling;
  (void)a1, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  auto& [threads] = c.cpu;
  (void)threads;
  auto& [nodes, rank, address, port, token] = c.cluster;
  (void)nodes, (void)rank, (void)address, (void)port, (void)token;
  auto& [guesses, least, longest] = c.speculative;
  (void)guesses, (void)least, (void)longest;
  EXPECT_EQ(count["speculative"], 3);
  EXPECT_EQ(count["cluster"], 5);
  EXPECT_EQ(count["model"], model_size);
  EXPECT_EQ(count["gpu"], gpu_size);
  EXPECT_EQ(count["cpu"], 1);
  EXPECT_EQ(count["server"], server_size);
  EXPECT_EQ(count["sampling"], sampling_size);
}

TEST_F(LoadTest, ConfigIsFoundAsGivenThenInTheInstallation) {
  const auto shared = write("share/deepinfer/only_there.yaml", "gpu:\n");
  auto found = resolve_config("only_there.yaml", folder_);
  ASSERT_TRUE(found.ok()) << found.error().message;
  EXPECT_EQ(*found, shared);
  const auto given = write("here.yaml", "gpu:\n");
  EXPECT_EQ(*resolve_config(given, folder_), given);
  auto missing = resolve_config("nowhere.yaml", folder_);
  ASSERT_FALSE(missing.ok());
  EXPECT_THAT(missing.error().message,
              HasSubstr("--config nowhere.yaml: no such file, neither here nor as "));
  EXPECT_FALSE(install_prefix().empty());
}

TEST(Configs, EveryShippedFileLoads) {
  const std::filesystem::path folder = std::filesystem::path(DI_SOURCE_DIR) / "configs";
  std::set<std::string> seen;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    seen.insert(entry.path().filename().string());
    auto loaded = load_config({.yaml = entry.path()});
    EXPECT_TRUE(loaded.ok()) << (loaded.ok() ? "" : loaded.error().message);
  }
  EXPECT_THAT(seen, testing::IsSupersetOf({"default.yaml", "nvidia_5090.yaml", "nvidia_4090.yaml", "cpu.yaml",
                                           "high_throughput.yaml", "low_latency.yaml", "long_context.yaml"}));
  auto standard = load_config({.yaml = folder / "default.yaml"});
  EXPECT_EQ(standard->config.sampling.temperature, 0.7);
  EXPECT_EQ(standard->config.sampling.top_p, 0.95);
  EXPECT_EQ(standard->config.sampling.max_tokens, 512);
  auto card = load_config({.yaml = folder / "nvidia_5090.yaml"});
  EXPECT_EQ(card->config.gpu.max_num_seqs, 512);
  EXPECT_EQ(card->config.gpu.gpu_memory_utilization, 0.95);
}

TEST(Configs, TheDocumentIsTheTable) {
  std::ifstream in(std::string(DI_SOURCE_DIR) + "/docs/CONFIG.md");
  ASSERT_TRUE(in) << "docs/CONFIG.md is missing: deepinfer config --markdown > docs/CONFIG.md";
  std::stringstream text;
  text << in.rdbuf();
  EXPECT_EQ(text.str(), config_markdown()) << "run: deepinfer config --markdown > docs/CONFIG.md";
}

}  // namespace
}  // namespace deepinfer
