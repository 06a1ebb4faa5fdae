#include "base/paths.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

namespace deepinfer {
namespace {

TEST(Paths, TheProgramIsFoundByItsOwnFile) {
  EXPECT_EQ(own_file().filename(), "paths_test");
  EXPECT_TRUE(own_file().is_absolute());
  EXPECT_EQ(install_prefix(), own_file().parent_path().parent_path());
  EXPECT_EQ(share_dir(), install_prefix() / "share" / "deepinfer");
}

TEST(Paths, AModuleIsItsOwnPrefix) {
  EXPECT_EQ(install_prefix("/usr/local/bin/deepinfer"), "/usr/local");
  EXPECT_EQ(install_prefix("/venv/site-packages/deepinfer/_core.abi3.so"), "/venv/site-packages/deepinfer");
  EXPECT_EQ(install_prefix("/venv/deepinfer/_core.cpython-311-x86_64-linux-gnu.so"), "/venv/deepinfer");
}

// The address of code in a module leads to the module, not to the program.
TEST(Paths, CodeOfAModuleIsFoundInTheModule) {
  void* module = dlopen(DI_PATHS_MODULE, RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(module, nullptr) << dlerror();
  auto* file = reinterpret_cast<const char* (*)()>(dlsym(module, "di_own_file"));
  ASSERT_NE(file, nullptr) << dlerror();
  EXPECT_EQ(std::filesystem::path(file()), std::filesystem::path(DI_PATHS_MODULE));
  dlclose(module);
}

}  // namespace
}  // namespace deepinfer
