#include "base/shared_library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "base/check.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

// Folders old/ and new/ hold libdi_sample.so of versions 1 and 2.
class SharedLibraryTest : public testing::Test {
 protected:
  SharedLibraryTest() : root_(fs::path(testing::TempDir()) / ("di_library_" + std::to_string(getpid()))) {
    install(DI_SAMPLE_1, "old", kFile);
    install(DI_SAMPLE_2, "new", kFile);
    install(DI_SAMPLE_3, "old", kRejected);
    fs::create_directories(root_ / "empty");
    fs::create_directories(root_ / "broken");
    for (const char* name : {kFile, kRejected})
      std::ofstream(root_ / "broken" / name) << "this is no library";
  }
  ~SharedLibraryTest() override { fs::remove_all(root_); }

  void install(const char* library, const char* folder, const char* name) {
    fs::create_directories(root_ / folder);
    fs::copy_file(library, root_ / folder / name);
  }
  LibraryFolder place(const char* folder) const { return {root_ / folder, std::string("place ") + folder}; }
  static Result<int> version(const SharedLibrary& library) {
    DI_ASSIGN(auto* function, library.symbol<int()>("di_sample_version"));
    return function();
  }
  static LibrarySpec spec(int at_least = 0, const char* file = kFile) {
    return {.name = "Sample",
            .files = {file},
            .remedy = "install sample 2",
            .check = [at_least](const SharedLibrary& library) -> Result<void> {
              DI_ASSIGN(const int got, version(library));
              if (got < at_least)
                return make_error(ErrorCode::kUnavailable, "version {}, expected {} or newer", got, at_least);
              return {};
            }};
  }

  static constexpr const char* kFile = "libdi_sample.so";
  // Accepted by no test: what was accepted stays loaded, and its SONAME with it.
  static constexpr const char* kRejected = "libdi_rejected.so";
  fs::path root_;
};

TEST_F(SharedLibraryTest, FirstPlaceWins) {
  auto library = load_library(spec(), {place("empty"), place("new"), place("old")});
  ASSERT_TRUE(library.ok()) << library.error().message;
  EXPECT_EQ(library->path(), root_ / "new" / kFile);
  EXPECT_EQ(library->name(), "Sample");
  auto got = version(*library);
  ASSERT_TRUE(got.ok());
  EXPECT_EQ(*got, 2);
}

TEST_F(SharedLibraryTest, TooOldPassesOnToTheNextPlace) {
  auto library = load_library(spec(2), {place("old"), place("broken"), place("new")});
  ASSERT_TRUE(library.ok()) << library.error().message;
  EXPECT_EQ(library->path(), root_ / "new" / kFile);
}

TEST_F(SharedLibraryTest, ErrorNamesEveryPlaceAndReason) {
  auto library = load_library(spec(4, kRejected), {place("empty"), place("broken"), place("old")});
  ASSERT_FALSE(library.ok());
  const std::string& message = library.error().message;
  EXPECT_EQ(library.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(message, HasSubstr("Sample: no usable library"));
  EXPECT_THAT(message, HasSubstr((root_ / "empty" / kRejected).string() + " (place empty): not there"));
  EXPECT_THAT(message, HasSubstr((root_ / "broken" / kRejected).string() + " (place broken): "));
  EXPECT_THAT(message, HasSubstr("(place old): version 3, expected 4 or newer"));
  // A rejected library would answer here for its SONAME if it were still loaded.
  EXPECT_THAT(message, HasSubstr(std::string(kRejected) + " (the loader's path): "));
  EXPECT_THAT(message, Not(HasSubstr("(the loader's path): version")));
  EXPECT_THAT(message, testing::EndsWith("install sample 2"));
}

TEST_F(SharedLibraryTest, MissingFunction) {
  auto library = load_library(spec(), {place("new")});
  ASSERT_TRUE(library.ok()) << library.error().message;
  auto none = library->symbol<void()>("di_sample_nothing");
  ASSERT_FALSE(none.ok());
  EXPECT_THAT(none.error().message, HasSubstr("has no function di_sample_nothing"));
  EXPECT_THAT(none.error().message, HasSubstr(library->path().string()));
}

TEST_F(SharedLibraryTest, LoadersPathIsLast) {
  auto library =
      load_library({.name = "C", .files = {"libc.so.6"}, .remedy = "", .check = {}}, {place("empty")});
  ASSERT_TRUE(library.ok()) << library.error().message;
  EXPECT_THAT(library->path().string(), HasSubstr("/libc.so.6"));
  auto get = library->symbol<int()>("getpid");
  ASSERT_TRUE(get.ok());
  EXPECT_EQ((*get)(), getpid());
}

TEST_F(SharedLibraryTest, SymbolsOutliveTheObject) {
  int (*function)() = nullptr;
  {
    auto library = load_library(spec(), {place("old")});
    ASSERT_TRUE(library.ok());
    function = *library->symbol<int()>("di_sample_version");
  }
  EXPECT_EQ(function(), 1);
}

TEST_F(SharedLibraryTest, OrderOfPlaces) {
  fs::create_directories(root_ / "share/deepinfer");
  std::ofstream(root_ / "share/deepinfer/cuda_library_dirs") << "/venv/cu13/lib\n\n  /venv/nccl/lib \r\n";
  const auto folders = library_folders(root_, ":/first::/second");
  std::vector<std::string> got;
  for (const LibraryFolder& place : folders) got.push_back(place.folder.string());
  EXPECT_EQ(got, (std::vector<std::string>{"/first", "/second", (root_ / "lib").string(), "/venv/cu13/lib",
                                           "/venv/nccl/lib"}));
  EXPECT_EQ(folders[0].origin, "DEEPINFER_CUDA_LIB_DIR");
  EXPECT_THAT(folders[3].origin, HasSubstr("cuda_library_dirs"));

  fs::create_directories(root_ / "site/deepinfer");
  fs::create_directories(root_ / "site/nvidia/cu13/lib");
  const auto package = library_folders(root_ / "site/deepinfer", "");
  ASSERT_EQ(package.size(), 2u);
  EXPECT_EQ(package[1].folder, root_ / "site/nvidia/cu13/lib");

  const auto bare = library_folders("/nowhere", "");
  ASSERT_EQ(bare.size(), 1u);
  EXPECT_EQ(bare[0].folder, "/nowhere/lib");
}

}  // namespace
}  // namespace deepinfer
