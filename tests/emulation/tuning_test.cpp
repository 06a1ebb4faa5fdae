// The file of tuned algorithms: kept, replaced as a whole, ignored when broken or made for something else.
#include "backend/cuda/tuning.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <iterator>

namespace deepinfer::cuda {
namespace {

class Tuning : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("deepinfer_tuning_" + std::to_string(getpid()));
    std::filesystem::remove_all(folder_);
    path_ = folder_ / "deeper" / "file.txt";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string text() const {
    std::ifstream in(path_);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void write(const std::string& text) const { std::ofstream(path_, std::ios::trunc) << text; }

  std::filesystem::path folder_, path_;
  const TuningKey key_{.n = 4096, .k = 14336, .m = 64, .in = 2, .out = 0, .add = 1};
  const Tuned value_{.algo = {1, 0xffffffffffffffff, 3, 0, 0, 6, 7, 8}, .microseconds = 12.5f};
};

TEST_F(Tuning, KeepsWhatWasFound) {
  TuningFile file(path_, "card driver");
  EXPECT_TRUE(file.entries().empty());
  file.put(key_, value_);
  TuningKey other = key_;
  other.m = 128;
  file.put(other, value_);
  ASSERT_TRUE(file.save().ok());
  const TuningFile again(path_, "card driver");
  ASSERT_EQ(again.entries().size(), 2u);
  EXPECT_EQ(again.entries().at(key_).algo, value_.algo);
  EXPECT_FLOAT_EQ(again.entries().at(key_).microseconds, 12.5f);
  for (const auto& entry : std::filesystem::directory_iterator(path_.parent_path()))
    EXPECT_EQ(entry.path(), path_) << "a draft was left";
  file.erase(other);
  ASSERT_TRUE(file.save().ok());
  EXPECT_EQ(TuningFile(path_, "card driver").entries().size(), 1u);
}

TEST_F(Tuning, AnotherCardStartsAnew) {
  TuningFile file(path_, "card driver");
  file.put(key_, value_);
  ASSERT_TRUE(file.save().ok());
  EXPECT_TRUE(TuningFile(path_, "card newer driver").entries().empty());
}

TEST_F(Tuning, BrokenFilesAreTunedAgain) {
  TuningFile file(path_, "card");
  file.put(key_, value_);
  ASSERT_TRUE(file.save().ok());
  const std::string good = text();
  ASSERT_FALSE(TuningFile(path_, "card").entries().empty());
  for (size_t cut = 0; cut + 1 < good.size(); cut += 7) {
    write(good.substr(0, cut));
    EXPECT_TRUE(TuningFile(path_, "card").entries().empty()) << cut;
  }
  for (const char* line : {"4096 x", "-1 2 3 4 5 6 7 0 0 0 0 0 0 0 0", "1 2 3 4 5 6 7 0 0 0 0 0 0 0 0 0"}) {
    write("deepinfer cublaslt 1\ncard\n" + std::string(line) + "\nend\n");
    EXPECT_TRUE(TuningFile(path_, "card").entries().empty()) << line;
  }
  std::string flipped = good;
  const size_t digit = good.find(" ffffffffffffffff");
  ASSERT_NE(digit, std::string::npos);
  flipped[digit + 1] = 'e';
  write(flipped);
  EXPECT_TRUE(TuningFile(path_, "card").entries().empty()) << "another algorithm's bits";
  // It is replaced, not mended.
  TuningFile next(path_, "card");
  next.put(key_, value_);
  ASSERT_TRUE(next.save().ok());
  EXPECT_EQ(text(), good);
}

TEST_F(Tuning, AFolderThatCannotBeWrittenIsSaid) {
  std::filesystem::create_directories(folder_);
  std::ofstream(folder_ / "deeper") << "a file where a folder should be";
  TuningFile file(path_, "card");
  file.put(key_, value_);
  const Result<void> saved = file.save();
  ASSERT_FALSE(saved.ok());
  EXPECT_THAT(saved.error().message, testing::HasSubstr(path_.string()));
}

TEST(TuningBucket, GrowsBySteps) {
  int64_t before = 0;
  for (int64_t m = 1; m < 20000; ++m) {
    const int64_t b = tuning_bucket(m);
    ASSERT_GE(b, std::min<int64_t>(m, 16384)) << m;
    ASSERT_GE(b, before) << m;
    ASSERT_EQ(tuning_bucket(b), b) << m;
    if (m > 32 && m <= 16384) {
      ASSERT_LE(b, m + m / 2 + 1) << m;
    }
    before = b;
  }
}

TEST(TuningPath, HasNoAwkwardCharacters) {
  const std::string name = tuning_path("NVIDIA H200 / x driver 13000").filename().string();
  EXPECT_EQ(name, "cublaslt-NVIDIA_H200___x_driver_13000.txt");
}

}  // namespace
}  // namespace deepinfer::cuda
