// The self-check with paths that are right, wrong and broken, its file, and the real cases of the own
// kernels.
#include "backend/cuda/self_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <set>
#include <stdexcept>

#include "backend/cuda/cublaslt.h"
#include "backend/cuda/fast/attention_sample.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/self_check_cases.h"
#include "backend/cuda_error.h"
#include "emulation/emulated_gpu.h"

namespace deepinfer::cuda {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

std::unique_ptr<Gpu> open_gpu() {
  auto gpu = Gpu::open({.self_check = false});
  EXPECT_TRUE(gpu.ok()) << gpu.error().message;
  return std::move(gpu).value();
}

class SelfCheck : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) /
              ("self_check_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
    std::filesystem::remove_all(folder_);
    gpu_ = open_gpu();
    gpu_->fast = {.fa2 = true, .xqa = true, .cublaslt = true};
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // Paths that write on the device what their name says: `plain` and this times `factor`.
  PathCheck path(std::string key, bool FastPaths::* flag, float factor) {
    return {key, key, flag, [this, factor](Gpu&) -> Result<std::vector<Comparison>> {
              ++runs_;
              std::vector<float> plain = {1, -2, 3, 0.5f, 4, 1}, fast = plain;
              for (float& x : fast) x *= factor;
              return std::vector<Comparison>{{"six values", plain, fast, 3, 0.01}};
            }};
  }
  std::filesystem::path file() const {
    for (const auto& e : std::filesystem::directory_iterator(folder_)) return e.path();
    return {};
  }
  std::string text() const {
    std::ifstream in(file());
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void write(const std::string& content) const { std::ofstream(file()) << content; }
  void turn_on() { gpu_->fast = {.fa2 = true, .xqa = true, .cublaslt = true}; }

  std::filesystem::path folder_;
  std::unique_ptr<Gpu> gpu_;
  int runs_ = 0;
};

TEST_F(SelfCheck, SwitchesOffWhatDisagreesAndRemembers) {
  const std::vector<PathCheck> checks = {path("good", &FastPaths::fa2, 1.005f),
                                         path("bad", &FastPaths::xqa, 1.02f)};
  for (int start = 0; start < 3; ++start) {
    turn_on();
    self_check(*gpu_, checks, folder_);
    EXPECT_TRUE(gpu_->fast.fa2);
    EXPECT_FALSE(gpu_->fast.xqa);
    EXPECT_TRUE(gpu_->fast.cublaslt);
    EXPECT_EQ(runs_, 2) << "start " << start;
  }
  EXPECT_THAT(text(), HasSubstr("\"good\":\"right\""));
  EXPECT_THAT(text(), HasSubstr("disagreed with the plain kernel: six values: row 0 is off by"));
}

TEST_F(SelfCheck, PathsThatAreOffAreNotRun) {
  gpu_->fast.xqa = false;
  self_check(*gpu_, {path("bad", &FastPaths::xqa, 2)}, folder_);
  EXPECT_EQ(runs_, 0);
}

TEST_F(SelfCheck, FailuresSwitchOff) {
  const PathCheck refused{"refused", "refused", &FastPaths::fa2, [](Gpu&) -> Result<std::vector<Comparison>> {
                            throw CudaError("invalid argument", 1, false);
                          }};
  const PathCheck no_memory{
      "no_memory", "no_memory", &FastPaths::xqa,
      [](Gpu&) -> Result<std::vector<Comparison>> { return Error{ErrorCode::kMemory, "no memory", {}}; }};
  self_check(*gpu_, {refused, no_memory, path("good", &FastPaths::cublaslt, 1)}, folder_);
  // Want of memory says nothing about the path: the next start tries again.
  EXPECT_THAT(text(), testing::Not(HasSubstr("no_memory")));
  EXPECT_FALSE(gpu_->fast.fa2);
  EXPECT_FALSE(gpu_->fast.xqa);
  EXPECT_TRUE(gpu_->fast.cublaslt);
  EXPECT_THAT(text(), HasSubstr("failed: invalid argument"));
}

// What broke the context cannot be gone on with; the next start leaves it off.
TEST_F(SelfCheck, ABrokenContextEndsTheStartAndIsRemembered) {
  const PathCheck broken{"broken", "broken", &FastPaths::xqa,
                         [this](Gpu&) -> Result<std::vector<Comparison>> {
                           ++runs_;
                           throw CudaError("illegal address", 700, true);
                         }};
  EXPECT_THROW(self_check(*gpu_, {broken}, folder_), CudaError);
  self_check(*gpu_, {broken}, folder_);
  EXPECT_FALSE(gpu_->fast.xqa);
  EXPECT_EQ(runs_, 1);
}

TEST_F(SelfCheck, NotANumberIsWrong) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(difference({"x", {1, 2}, {1, 2}, 2, 0}), IsEmpty());
  EXPECT_THAT(difference({"x", {1, 2}, {1, nan}, 2, 0.1}), HasSubstr("row 0"));
  EXPECT_THAT(difference({"x", {0, 0, 1, 1}, {0, 0, 1, 1.2f}, 2, 0.1}), HasSubstr("row 1"));
  EXPECT_THAT(difference({"x", {0, 0}, {0, 1e-6f}, 2, 0.1}), HasSubstr("row 0"));
  EXPECT_THAT(difference({"x", {1, 2}, {1}, 1, 0.1}), HasSubstr("1 values, expected 2"));
}

TEST_F(SelfCheck, BrokenFilesAreMadeAnew) {
  const std::vector<PathCheck> checks = {path("good", &FastPaths::fa2, 1)};
  self_check(*gpu_, checks, folder_);
  ASSERT_EQ(runs_, 1);
  const std::string right = text();
  int expected = 1;
  for (const std::string& content :
       {std::string("{"), std::string(), std::string("[1]"), std::string(1 << 20, 'x'),
        std::string(R"({"build":1,"paths":7})"), right.substr(0, right.size() / 2)}) {
    write(content);
    self_check(*gpu_, checks, folder_);
    EXPECT_EQ(runs_, ++expected);
    EXPECT_EQ(text(), right);
  }
  // Of another build.
  std::string other = right;
  other.replace(other.find("\"build\":\"") + 9, 1, "9");
  write(other);
  self_check(*gpu_, checks, folder_);
  EXPECT_EQ(runs_, ++expected);
}

TEST_F(SelfCheck, AFolderThatCannotBeWrittenFailsNothing) {
  std::ofstream(folder_) << "a file where the folder should be";
  for (int start = 1; start <= 2; ++start) {
    self_check(*gpu_, {path("good", &FastPaths::fa2, 1)}, folder_ / "below");
    EXPECT_TRUE(gpu_->fast.fa2);
    EXPECT_EQ(runs_, start);
  }
}

TEST_F(SelfCheck, ACheckThatDidNotEndIsNotBegunAgain) {
  const std::vector<PathCheck> checks = {path("good", &FastPaths::fa2, 1)};
  self_check(*gpu_, checks, folder_);
  std::string unfinished = text();
  const std::string right = "\"right\"";
  // No process has this id: the kernel's limit is 2^22.
  unfinished.replace(unfinished.find(right), right.size(), "\"running, process 2147483646\"");
  write(unfinished);
  self_check(*gpu_, checks, folder_);
  EXPECT_FALSE(gpu_->fast.fa2);
  EXPECT_EQ(runs_, 1);
  // One that runs now, in another process: checked here as well.
  turn_on();
  unfinished.replace(unfinished.find("2147483646"), 10, "1");
  write(unfinished);
  self_check(*gpu_, checks, folder_);
  EXPECT_TRUE(gpu_->fast.fa2);
  EXPECT_EQ(runs_, 2);
}

// The real cases of what is compiled here; cuBLASLt is the emulation's.
TEST_F(SelfCheck, TheRealPathsAreRight) {
  open_cublaslt(*gpu_);
  ASSERT_TRUE(gpu_->fast.cublaslt);
  gpu_->fast.pdl = true;
  struct {
    Result<std::vector<Comparison>> (*run)(Gpu&);
    size_t cases;
  } paths[] = {{check_skinny, 7},  {check_finish, 5}, {check_cublaslt, 4},     {check_cublaslt_f8, 4},
               {check_f8_tile, 3}, {check_pdl, 1},    {check_skinny_codes, 5}, {check_codes, 5}};
  for (const auto& path : paths) {
    const auto cases = path.run(*gpu_);
    ASSERT_TRUE(cases.ok()) << cases.error().message;
    EXPECT_EQ(cases->size(), path.cases);
    for (const Comparison& c : *cases) EXPECT_EQ(difference(c), "") << c.shape;
  }
  EXPECT_GT(emulation::machine_counts().early_starts, 0);
}

PathCheck real_path(const std::string& key) {
  for (const PathCheck& check : path_checks())
    if (check.key == key) return check;
  throw std::invalid_argument(key);
}

// The emulation's library with a fault in products of more than `above` tokens that have a residual and a
// bias.
struct FaultyLibrary {
  static inline CublasLtApi real;
  static inline enum class Fault { kNone, kLosesBias, kLosesResidual } fault;
  static inline uint64_t above = 0;
  static inline std::map<cublasLtMatrixLayout_t, uint64_t> tokens;
  static inline std::set<cublasLtMatmulDesc_t> biased;

  static CublasLtApi make(Fault wanted, uint64_t above_tokens) {
    CublasLtApi api = real = load_cublaslt().value();
    fault = wanted;
    above = above_tokens;
    api.layout_create = [](cublasLtMatrixLayout_t* l, cudaDataType_t type, uint64_t rows, uint64_t cols,
                           int64_t ld) {
      const cublasStatus_t status = real.layout_create(l, type, rows, cols, ld);
      tokens[*l] = cols;
      return status;
    };
    api.desc_create = [](cublasLtMatmulDesc_t* d, cublasComputeType_t compute, cudaDataType_t scale) {
      const cublasStatus_t status = real.desc_create(d, compute, scale);
      biased.erase(*d);
      return status;
    };
    api.desc_set = [](cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t what, const void* value,
                      size_t bytes) {
      if (what == CUBLASLT_MATMUL_DESC_EPILOGUE) biased.insert(d);
      return real.desc_set(d, what, value, bytes);
    };
    api.matmul = [](cublasLtHandle_t handle, cublasLtMatmulDesc_t d, const void* alpha, const void* a,
                    cublasLtMatrixLayout_t al, const void* b, cublasLtMatrixLayout_t bl, const void* beta,
                    const void* c, cublasLtMatrixLayout_t cl, void* out, cublasLtMatrixLayout_t ol,
                    const cublasLtMatmulAlgo_t* algo, void* workspace, size_t bytes, cudaStream_t stream) {
      const float zero = 0;
      const cublasLtEpilogue_t none = CUBLASLT_EPILOGUE_DEFAULT;
      const bool wrong = biased.contains(d) && *static_cast<const float*>(beta) == 1 && tokens[ol] > above;
      if (wrong && fault == Fault::kLosesBias)
        (void)real.desc_set(d, CUBLASLT_MATMUL_DESC_EPILOGUE, &none, sizeof none);
      if (wrong && fault == Fault::kLosesResidual) beta = &zero;
      return real.matmul(handle, d, alpha, a, al, b, bl, beta, c, cl, out, ol, algo, workspace, bytes,
                         stream);
    };
    return api;
  }
};

// A residual and a bias are taken by the library itself: what it makes of them is compared too.
TEST_F(SelfCheck, ALibraryThatLosesABiasOrAResidualIsSwitchedOff) {
  using Fault = FaultyLibrary::Fault;
  for (const Fault fault : {Fault::kNone, Fault::kLosesBias, Fault::kLosesResidual}) {
    for (const uint64_t above : {0, 64}) {
      SCOPED_TRACE(testing::Message() << "fault " << static_cast<int>(fault) << " above " << above);
      std::filesystem::remove_all(folder_);
      auto library = Cublaslt::open(*gpu_, FaultyLibrary::make(fault, above));
      ASSERT_TRUE(library.ok()) << library.error().message;
      gpu_->parts().cublaslt = *library;
      turn_on();
      self_check(*gpu_, {real_path("cublaslt")}, folder_);
      EXPECT_EQ(gpu_->fast.cublaslt, fault == Fault::kNone) << text();
      EXPECT_TRUE(gpu_->fast.skinny);
      EXPECT_THAT(text(), HasSubstr(fault == Fault::kNone ? "right" : "a residual, with a bias"));
    }
  }
}

// Blocks that count wrongly who brings a head's last rows: it is finished too early, or never.
TEST_F(SelfCheck, HeadsThatAreFinishedAtTheWrongTimeAreSwitchedOff) {
  for (const int32_t counted : {0, 1, 48, -16}) {
    SCOPED_TRACE(testing::Message() << "counters of " << counted);
    std::filesystem::remove_all(folder_);
    auto staging = gpu_->allocate_pinned(sizeof counted);
    ASSERT_TRUE(staging.ok());
    std::memcpy(staging->data(), &counted, sizeof counted);
    gpu_->copy_in(gpu_->parts().arrived() + 5, staging->data(), sizeof counted);
    gpu_->fast.finish = true;
    self_check(*gpu_, {real_path("finish")}, folder_);
    EXPECT_EQ(gpu_->fast.finish, counted == 0) << text();
    EXPECT_TRUE(gpu_->fast.skinny);
    EXPECT_THAT(text(), HasSubstr(counted == 0 ? "right" : "disagreed with the plain kernel"));
    gpu_->fill(gpu_->parts().arrived(), 0, kTileCounters * sizeof(int32_t));
    gpu_->synchronize();
  }
}

// A part of the skinny kernel: nothing is known of it while that is off.
TEST_F(SelfCheck, HeadsAreNotComparedWithoutTheSkinnyKernel) {
  gpu_->fast.skinny = false;
  self_check(*gpu_, {real_path("finish")}, folder_);
  EXPECT_FALSE(gpu_->fast.finish);
  EXPECT_THAT(text(), HasSubstr("\"paths\":{}"));
  gpu_->fast.skinny = gpu_->fast.finish = true;
  self_check(*gpu_, {real_path("finish")}, folder_);
  EXPECT_TRUE(gpu_->fast.finish);
}

// The samples that fast kernels are compared on: a kernel that looks where it should not finds NaN.
TEST_F(SelfCheck, ThePlainKernelReadsOnlyWhatBelongsToTheRows) {
  for (const int window : {0, 20})
    for (const DType cache : {DType::kBF16, DType::kF8E4M3}) {
      const auto made = AttentionSample::make(
          *gpu_,
          {.heads = 3,
           .kv_heads = 1,
           .dim = 64,
           .window = window,
           .kv_dtype = cache,
           .rows = {{.context = 70}, {.padding = true}, {.context = 31}, {.context = 40, .tokens = 19}}});
      ASSERT_TRUE(made.ok());
      AttentionSample& sample = **made;
      const PagedAttention& a = sample.attention();
      auto scratch = gpu_->allocate(attention_scratch_bytes(*gpu_, a) + 1);
      ASSERT_TRUE(scratch.ok());
      attention_plain(*gpu_, a, scratch->data());
      const auto out = sample.read_out(*gpu_, 0, sample.tokens());
      ASSERT_TRUE(out.ok());
      const size_t row = 3 * 64;
      for (size_t i = 0; i < out->size(); ++i) {
        ASSERT_TRUE(std::isfinite((*out)[i])) << "token " << i / row << ", window " << window;
        if (i / row == 1) {
          ASSERT_EQ((*out)[i], 0) << "padding";
        }
      }
    }
}

TEST_F(SelfCheck, EveryPathHasAKeyAndAFlagOfItsOwn) {
  std::set<std::string> keys;
  for (const PathCheck& check : path_checks()) {
    EXPECT_TRUE(keys.insert(check.key).second) << check.key;
    FastPaths one;
    one.skinny = one.finish = one.skinny_codes = one.codes = false;
    one.*check.flag = true;
    EXPECT_EQ(one.fa2 + one.xqa + one.cublaslt + one.skinny + one.finish + one.pdl + one.cublaslt_f8 +
                  one.f8_tile + one.skinny_codes + one.codes,
              1);
  }
  EXPECT_EQ(keys.size(), 10u);
}

}  // namespace
}  // namespace deepinfer::cuda
