#include "hub/cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "hub/file_lock.h"
#include "hub/remove.h"

namespace deepinfer::hub {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;

const std::string kRepo = "acme/tiny";
const std::string kOne(40, '1'), kTwo(40, '2');

class CacheTest : public testing::Test {
 protected:
  void SetUp() override { fs::remove_all(root_); }
  void TearDown() override { fs::remove_all(root_); }

  // A blob of this text, linked; its name is made from the text.
  void add(const std::string& commit, const std::string& name, const std::string& text) {
    std::string etag;
    for (const char c : text) etag += "0123456789abcdef"[static_cast<unsigned char>(c) % 16];
    etag.resize(40, '0');
    fs::create_directories(cache_.blob(kRepo, etag).parent_path());
    std::ofstream(cache_.blob(kRepo, etag)) << text;
    ASSERT_TRUE(cache_.link(kRepo, commit, name, etag));
  }
  bool found(const std::string& file, const std::string& revision, const fs::path& expected) {
    const auto model = cache_.find({kRepo, file}, revision);
    return model && *model && (*model)->path == expected;
  }
  bool missing(const std::string& file, const std::string& revision) {
    const auto model = cache_.find({kRepo, file}, revision);
    return model && !*model;
  }

  const fs::path root_ = fs::path(testing::TempDir()) / "hub_cache";
  const Cache cache_{root_};
};

TEST_F(CacheTest, PathsOfTheHub) {
  EXPECT_EQ(cache_.snapshot(kRepo, kOne), root_ / "models--acme--tiny/snapshots" / kOne);
  EXPECT_EQ(cache_.lock(kRepo, "e"), root_ / ".locks/models--acme--tiny/e.lock");
  EXPECT_EQ(cache_.incomplete(kRepo, "e"), root_ / "models--acme--tiny/blobs/e.incomplete");
  EXPECT_THAT(cache_.repos(), ElementsAre());
  add(kOne, "a", "x");
  EXPECT_THAT(cache_.repos(), ElementsAre(kRepo));
}

TEST_F(CacheTest, LinksAreRelativeAndReplaced) {
  add(kOne, "sub/a.json", "one");
  add(kOne, "sub/a.json", "two");
  const fs::path link = cache_.snapshot(kRepo, kOne) / "sub/a.json";
  EXPECT_EQ(fs::read_symlink(link).string().substr(0, 15), "../../../blobs/");
  EXPECT_EQ(read_small(link, 10), "two");
  EXPECT_FALSE(cache_.link(kRepo, kOne, "../x", std::string(40, '0')));
}

TEST_F(CacheTest, References) {
  EXPECT_EQ(cache_.read_ref(kRepo, "main"), std::nullopt);
  ASSERT_TRUE(cache_.write_ref(kRepo, "refs/pr/1", kOne));
  ASSERT_TRUE(cache_.write_ref(kRepo, "main", kOne));
  ASSERT_TRUE(cache_.write_ref(kRepo, "main", kTwo));
  EXPECT_EQ(cache_.read_ref(kRepo, "main"), kTwo);
  EXPECT_EQ(cache_.read_ref(kRepo, "refs/pr/1"), kOne);
  EXPECT_EQ(cache_.read_ref(kRepo, "../../x"), std::nullopt);
  std::ofstream(cache_.repo(kRepo) / "refs/main") << "../../../etc";
  EXPECT_EQ(cache_.read_ref(kRepo, "main"), std::nullopt);
}

TEST_F(CacheTest, AFolderIsFoundWhenItIsComplete) {
  add(kOne, "config.json", "{}");
  EXPECT_TRUE(missing("", kOne));
  add(kOne, kIndexFile, R"({"weight_map": {"a": "s1", "b": "s2"}})");
  add(kOne, "tokenizer.json", "{} ");
  add(kOne, "s1", "1");
  EXPECT_TRUE(missing("", kOne));
  add(kOne, "s2", "2");
  EXPECT_TRUE(found("", kOne, cache_.snapshot(kRepo, kOne)));
  EXPECT_TRUE(missing("", "main"));
  ASSERT_TRUE(cache_.write_ref(kRepo, "main", kOne));
  EXPECT_TRUE(found("", "main", cache_.snapshot(kRepo, kOne)));
  fs::remove(fs::canonical(cache_.snapshot(kRepo, kOne) / "s2"));
  EXPECT_TRUE(missing("", "main"));
}

TEST_F(CacheTest, WithoutARevisionMainComesFirst) {
  add(kOne, "a-Q8_0.gguf", "one");
  add(kTwo, "a-Q8_0.gguf", "two");
  ASSERT_TRUE(cache_.write_ref(kRepo, "main", kOne));
  EXPECT_TRUE(found("", "", cache_.snapshot(kRepo, kOne) / "a-Q8_0.gguf"));
  ASSERT_TRUE(cache_.write_ref(kRepo, "main", std::string(40, '3')));
  EXPECT_FALSE(missing("", ""));
  EXPECT_TRUE(missing("", "main"));
  EXPECT_TRUE(missing("Q4_0", ""));
}

TEST_F(CacheTest, PartsOfASplitFileAreCounted) {
  add(kOne, "a-Q8_0-00001-of-00002.gguf", "1");
  EXPECT_TRUE(missing("Q8_0", kOne));
  add(kOne, "a-Q8_0-00002-of-00002.gguf", "2");
  EXPECT_TRUE(found("q8_0", kOne, cache_.snapshot(kRepo, kOne) / "a-Q8_0-00001-of-00002.gguf"));
}

TEST_F(CacheTest, SeveralFilesFit) {
  add(kOne, "a-Q8_0.gguf", "1");
  add(kOne, "a-Q4_0.gguf", "2");
  const auto model = cache_.find({kRepo, ""}, kOne);
  ASSERT_FALSE(model);
  EXPECT_EQ(model.error().code, ErrorCode::kModel);
}

TEST_F(CacheTest, RemovalKeepsWhatOthersNeed) {
  const Settings settings{.cache = root_, .own_cache = root_ / "own"};
  add(kOne, "a-Q8_0.gguf", "same");
  add(kOne, "b-Q4_0.gguf", "other");
  add(kTwo, "a-Q8_0.gguf", "newer");
  add(kTwo, "c-F16.gguf", "same");
  ASSERT_TRUE(cache_.write_ref(kRepo, "v1", kOne));
  auto plan = plan_removal(settings, {kRepo, "Q8_0"});
  ASSERT_TRUE(plan) << plan.error().message;
  EXPECT_EQ(plan->bytes, 5u);  // "newer"
  ASSERT_TRUE(remove(settings, *plan));
  EXPECT_EQ(cache_.files(kRepo, kOne).size(), 1u);
  EXPECT_EQ(cache_.files(kRepo, kTwo).size(), 1u);
  ASSERT_TRUE(remove(settings, *plan_removal(settings, {kRepo, "Q4_0"})));
  EXPECT_EQ(cache_.read_ref(kRepo, "v1"), std::nullopt);
  ASSERT_TRUE(remove(settings, *plan_removal(settings, {kRepo, "F16"})));
  EXPECT_FALSE(fs::exists(cache_.repo(kRepo)));
  EXPECT_EQ(plan_removal(settings, {kRepo, ""}).error().code, ErrorCode::kNotFound);
}

TEST_F(CacheTest, ALockExcludesAndIsWaitedFor) {
  const fs::path file = cache_.lock(kRepo, "e");
  {
    const auto held = FileLock::try_take(file);
    ASSERT_TRUE(held && *held);
    const auto second = FileLock::try_take(file);
    ASSERT_TRUE(second);
    EXPECT_FALSE(*second);
    int told = 0;
    const auto stopped = FileLock::take(file, [&] { ++told; }, [&] { return told > 0; });
    ASSERT_FALSE(stopped);
    EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
    EXPECT_EQ(told, 1);
  }
  EXPECT_TRUE(FileLock::take(file, [] {}, [] { return true; }));
}

}  // namespace
}  // namespace deepinfer::hub
