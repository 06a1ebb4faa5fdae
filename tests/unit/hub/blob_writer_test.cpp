#include "hub/blob_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

namespace deepinfer::hub {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// Of "hello\n", as git and sha256sum give them.
const RemoteFile kSmall{"a.txt", "ce013625030ba8dba906f756967f9e9ca394464a", 6};
const RemoteFile kLarge{"a.bin", "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03", 6};

class BlobWriterTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / "hub_blobs";
    fs::remove_all(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path part(const RemoteFile& file) const { return folder_ / (file.etag + ".incomplete"); }
  Result<BlobWriter> open(const RemoteFile& file) const {
    return BlobWriter::open(part(file), file, [] { return false; });
  }
  static std::string content(const fs::path& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  fs::path folder_;
};

TEST_F(BlobWriterTest, BothHashes) {
  for (const RemoteFile& file : {kSmall, kLarge}) {
    auto w = open(file);
    ASSERT_TRUE(w) << w.error().message;
    EXPECT_FALSE(w->resumed());
    ASSERT_TRUE(w->append("hel"));
    ASSERT_TRUE(w->append("lo\n"));
    bool wrong = true;
    const auto done = w->finish(folder_ / file.etag, wrong);
    ASSERT_TRUE(done) << done.error().message;
    EXPECT_FALSE(wrong);
    EXPECT_EQ(content(folder_ / file.etag), "hello\n");
    EXPECT_FALSE(fs::exists(part(file)));
  }
}

TEST_F(BlobWriterTest, GoesOnFromItsBeginning) {
  for (const RemoteFile& file : {kSmall, kLarge}) {
    {
      auto w = open(file);
      ASSERT_TRUE(w && w->append("hell"));
    }
    auto w = open(file);
    ASSERT_TRUE(w);
    EXPECT_TRUE(w->resumed());
    EXPECT_EQ(w->size(), 4u);
    ASSERT_TRUE(w->append("o\n"));
    bool wrong = true;
    EXPECT_TRUE(w->finish(folder_ / file.etag, wrong));
  }
}

TEST_F(BlobWriterTest, WhatIsWrongIsRemoved) {
  auto w = open(kLarge);
  ASSERT_TRUE(w && w->append("hellO\n"));
  bool wrong = false;
  const auto done = w->finish(folder_ / kLarge.etag, wrong);
  ASSERT_FALSE(done);
  EXPECT_TRUE(wrong);
  EXPECT_THAT(done.error().message, HasSubstr(kLarge.etag));
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(BlobWriterTest, TooLongABeginningAndARestart) {
  fs::create_directories(folder_);
  std::ofstream(part(kLarge)) << "hello\nand more";
  auto w = open(kLarge);
  ASSERT_TRUE(w);
  EXPECT_EQ(w->size(), 0u);
  ASSERT_TRUE(w->append("xyz"));
  ASSERT_TRUE(w->restart());
  ASSERT_TRUE(w->append("hello\n"));
  bool wrong = true;
  EXPECT_TRUE(w->finish(folder_ / kLarge.etag, wrong));
}

TEST_F(BlobWriterTest, StoppedWhileItReadsTheBeginning) {
  fs::create_directories(folder_);
  std::ofstream(part(kLarge)) << "hel";
  const auto w = BlobWriter::open(part(kLarge), kLarge, [] { return true; });
  ASSERT_FALSE(w);
  EXPECT_EQ(w.error().code, ErrorCode::kCancelled);
}

TEST_F(BlobWriterTest, ALinkIsNotFollowed) {
  fs::create_directories(folder_);
  std::ofstream(folder_ / "other") << "x";
  fs::create_symlink(folder_ / "other", part(kLarge));
  EXPECT_FALSE(open(kLarge));
}

TEST(CheckSpace, SaysWhatIsMissing) {
  EXPECT_TRUE(check_space(fs::path(testing::TempDir()) / "not/there/yet", 1));
  const auto full = check_space(testing::TempDir(), uint64_t{1} << 60);
  ASSERT_FALSE(full);
  EXPECT_THAT(full.error().message, HasSubstr("are missing"));
}

}  // namespace
}  // namespace deepinfer::hub
