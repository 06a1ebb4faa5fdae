#include "model/sniff.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace deepinfer {
namespace {

std::string sniff(std::string_view text) {
  return looks_like({reinterpret_cast<const std::byte*>(text.data()), text.size()});
}

TEST(Sniff, NamesWhatPeopleConfuse) {
  using testing::HasSubstr;
  using namespace std::string_view_literals;
  EXPECT_THAT(sniff("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), HasSubstr("git lfs pull"));
  EXPECT_THAT(sniff("\x10\0\0\0\0\0\0\0{\"a\":{}}"sv), HasSubstr("safetensors"));
  EXPECT_THAT(sniff("PK\x03\x04"), HasSubstr("PyTorch"));
  EXPECT_THAT(sniff("\x80\x02}q"), HasSubstr("pickle"));
  EXPECT_THAT(sniff("\n <!DOCTYPE html><title>404</title>"), HasSubstr("HTML page"));
  EXPECT_THAT(sniff("<HTML>"), HasSubstr("HTML page"));
  EXPECT_THAT(sniff("{\"architectures\": []}"), HasSubstr("JSON"));
  EXPECT_THAT(sniff("tjgg"), HasSubstr("old GGML"));
  EXPECT_THAT(sniff("\x1f\x8b\x08"), HasSubstr("gzip"));
  EXPECT_THAT(sniff(std::string(100, '\0')), HasSubstr("not finished"));
  EXPECT_THAT(sniff("GGUF"), HasSubstr("GGUF"));
  EXPECT_EQ(sniff("hello"), "an unknown format");
  EXPECT_EQ(sniff(""), "an unknown format");
}

}  // namespace
}  // namespace deepinfer
