#include "comm/nccl.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace deepinfer {
namespace {

using testing::HasSubstr;

Result<NcclApi> load(const std::string& name) {
  return load_nccl({{"/nowhere", "the first place"}, {FAKE_NCCL_DIR, "the second place"}},
                   "libfake_nccl_" + name + ".so");
}

std::string problem(const std::string& name) {
  const Result<NcclApi> api = load(name);
  EXPECT_FALSE(api.ok());
  if (api) return "";
  EXPECT_EQ(api.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(api.error().message, HasSubstr("nvidia-nccl-cu13"));
  EXPECT_THAT(api.error().message, HasSubstr("DEEPINFER_CUDA_LIB_DIR"));
  return api.error().message;
}

TEST(Nccl, Found) {
  const Result<NcclApi> api = load("good");
  ASSERT_TRUE(api.ok()) << api.error().message;
  EXPECT_EQ(api->version, 22703);
  EXPECT_THAT(api->path.string(), testing::EndsWith("/libfake_nccl_good.so"));
  nccl::UniqueId id{};
  ASSERT_EQ(api->get_unique_id(&id), nccl::Code::kSuccess);
  EXPECT_EQ(id.internal[127], 7);
  EXPECT_STREQ(api->error_string(nccl::Code::kInProgress), "an error of the stand-in");
  for (const bool there :
       {api->comm_init_rank != nullptr, api->comm_init_rank_config != nullptr, api->comm_destroy != nullptr,
        api->comm_abort != nullptr, api->comm_async_error != nullptr, api->all_reduce != nullptr,
        api->all_gather != nullptr, api->broadcast != nullptr, api->send != nullptr, api->receive != nullptr,
        api->group_start != nullptr, api->group_end != nullptr})
    EXPECT_TRUE(there);
}

TEST(Nccl, Missing) {
  const std::string text = problem("nobody");
  EXPECT_THAT(text, HasSubstr("NCCL: no usable library"));
  EXPECT_THAT(text, HasSubstr("/nowhere/libfake_nccl_nobody.so (the first place): not there"));
  EXPECT_THAT(text, HasSubstr("(the loader's path)"));
}

TEST(Nccl, TooOld) {
  EXPECT_THAT(problem("old"), HasSubstr("version 2.17.5, expected 2.18.0 or newer"));
  EXPECT_THAT(problem("ancient"), HasSubstr("version 2.4.8, expected 2.18.0 or newer"));
  EXPECT_THAT(problem("mute"), HasSubstr("does not say its version"));
}

TEST(Nccl, WithoutAFunction) {
  EXPECT_THAT(problem("lacking"), HasSubstr("has no function ncclCommInitRankConfig"));
}

// As nccl.h of 2.18 lays it out on machines of 64 bits.
TEST(Nccl, ConfigHasItsLayout) {
  EXPECT_EQ(sizeof(nccl::Config), 48u);
  EXPECT_EQ(offsetof(nccl::Config, blocking), 16u);
  EXPECT_EQ(offsetof(nccl::Config, net_name), 32u);
  EXPECT_EQ(offsetof(nccl::Config, split_share), 40u);
  const nccl::Config config;
  EXPECT_EQ(config.size, sizeof(nccl::Config));
  EXPECT_EQ(config.magic, 0xcafebeefu);
}

}  // namespace
}  // namespace deepinfer
