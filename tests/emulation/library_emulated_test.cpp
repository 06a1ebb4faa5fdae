// Products by cuBLASLt: the same results, tuned once, never in a capture, and own kernels where it cannot.
#include <gmock/gmock.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <utility>

#include "backend/cuda/cublaslt.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/tuning.h"
#include "emulation/linear_fixture.h"

namespace deepinfer::test {
namespace {

namespace fs = std::filesystem;

class CudaLibrary : public CudaLinear {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("deepinfer_library_" + std::to_string(getpid()));
    fs::remove_all(folder_);
    setenv("DEEPINFER_CACHE_DIR", folder_.c_str(), 1);
  }
  void TearDown() override {
    unsetenv("DEEPINFER_CACHE_DIR");
    fs::remove_all(folder_);
  }

  // How many shapes the file holds; -1: there is none.
  int tuned_shapes() const {
    if (!fs::exists(folder_ / "tuning")) return -1;
    int lines = -3;  // two of a head, one at the end
    for (const auto& entry : fs::directory_iterator(folder_ / "tuning")) {
      std::ifstream in(entry.path());
      for (std::string line; std::getline(in, line);) ++lines;
    }
    return lines;
  }

  fs::path folder_;
};

TEST_P(CudaLibrary, ServesManyTokens) {
  CudaMachine m(a());
  cuda::open_cublaslt(*m.gpu);
  ASSERT_TRUE(m.gpu->fast.cublaslt);
  project(m, 40, 128, {17, 40, 31});
  project(m, 24, 96, {70});
  gate_up(m, 40, 64, 20);
  gate_up(m, 40, 64, 65);
  if (quantized()) return;
  EXPECT_GE(tuned_shapes(), 4);
  // What was tuned is not tuned again.
  const int before = tuned_shapes();
  CudaMachine second(a());
  cuda::open_cublaslt(*second.gpu);
  project(second, 40, 128, {17, 40});
  EXPECT_EQ(tuned_shapes(), before);
}

TEST_P(CudaLibrary, RowsThatItCannotAlignGoToTheTileKernel) {
  CudaMachine m(a());
  cuda::open_cublaslt(*m.gpu);
  project(m, 37, 64, {18});
}

TEST_P(CudaLibrary, DeterministicModeDoesWithout) {
  CudaMachine m(a(), true);
  cuda::open_cublaslt(*m.gpu);
  project(m, 40, 128, {40, 70});
  EXPECT_EQ(tuned_shapes(), -1);
}

class CudaLibraryDense : public CudaLibrary {
 protected:
  // out = W x, in a capture or not.
  struct Product {
    Product(CudaMachine& m, const Matrix& w, const std::vector<float>& x)
        : machine(m),
          rows(w.rows),
          cols(w.cols),
          tokens(static_cast<int64_t>(x.size()) / w.cols),
          packed(pack(m.context, {&w})),
          input(m, m.context.activation, x),
          out(m, DType::kF32, static_cast<size_t>(tokens * w.rows)) {}
    void launch() {
      cuda::linear(machine.context, {.weight = &packed,
                                     .x = input.tensor({tokens, cols}),
                                     .bias = {},
                                     .out = out.tensor({tokens, rows})});
    }
    CudaMachine& machine;
    int64_t rows, cols, tokens;
    LinearWeight packed;
    DeviceTensor input, out;
  };
  void expect_right(Product& p, const Matrix& w, const std::vector<float>& x) {
    const std::vector<float> y = p.out.read();
    for (int64_t t = 0; t < p.tokens; ++t) {
      for (int64_t r = 0; r < p.rows; ++r) {
        const Sum s = dot(weight_row(a(), w, r), x.data() + t * p.cols);
        ASSERT_NEAR(y[t * p.rows + r], s.value, bound(s, p.cols, p.tokens)) << t << " " << r;
      }
    }
  }
};

TEST_P(CudaLibraryDense, NothingIsTunedInACapture) {
  CudaMachine m(a());
  cuda::open_cublaslt(*m.gpu);
  const Matrix w = random_matrix(random_, weight(), 32, 64);
  const std::vector<float> x = rounded(a(), random_floats(random_, 20 * 64));
  for (const bool met_before : {false, true}) {
    Product p(m, w, x);
    if (met_before) p.launch();
    const int before = tuned_shapes();
    m.gpu->begin_capture();
    p.launch();
    const cuda::Graph graph = m.gpu->end_capture();
    EXPECT_EQ(tuned_shapes(), before);
    m.gpu->fill(p.out.data(), 0xff, static_cast<size_t>(p.tokens * p.rows) * 4);
    m.gpu->launch(graph);
    expect_right(p, w, x);
  }
  EXPECT_EQ(tuned_shapes(), 1);
}

// What was tuned may be refused for one m of its bucket, and nothing can be asked for in a capture.
TEST_P(CudaLibraryDense, ARefusalInACaptureLeavesTheLibrarysFirstChoice) {
  static struct {
    decltype(cuda::CublasLtApi::matmul) real = nullptr;
    bool refuses = false;
    int served = 0;
  } library;
  const Matrix w = random_matrix(random_, weight(), 32, 64);
  const std::vector<float> x = rounded(a(), random_floats(random_, 20 * 64));
  CudaMachine m(a());
  cuda::CublasLtApi api = cuda::load_cublaslt().value();
  library = {.real = api.matmul};
  api.matmul = [](auto... args) {
    if (std::exchange(library.refuses, false)) return CUBLAS_STATUS_NOT_SUPPORTED;
    ++library.served;
    return library.real(args...);
  };
  m.gpu->parts().cublaslt = cuda::Cublaslt::open(*m.gpu, api).value();
  m.gpu->fast.cublaslt = true;
  Product p(m, w, x);
  p.launch();
  EXPECT_EQ(tuned_shapes(), 1);
  m.gpu->begin_capture();
  library.refuses = true;
  library.served = 0;
  p.launch();
  const cuda::Graph graph = m.gpu->end_capture();
  EXPECT_FALSE(library.refuses);
  EXPECT_EQ(library.served, 1) << "the tile kernel took its place";
  m.gpu->fill(p.out.data(), 0xff, static_cast<size_t>(p.tokens * p.rows) * 4);
  m.gpu->launch(graph);
  expect_right(p, w, x);
}

// Another library's bits under this one's name: the file is wrong, the products are not.
TEST_P(CudaLibraryDense, BitsThatTheLibraryRefusesAreForgotten) {
  if (!kEmulated) GTEST_SKIP() << "the real library does not promise to survive bits that it never gave";
  const Matrix w = random_matrix(random_, weight(), 32, 64);
  const std::vector<float> x = rounded(a(), random_floats(random_, 20 * 64));
  {
    CudaMachine m(a());
    cuda::open_cublaslt(*m.gpu);
    Product p(m, w, x);
    p.launch();
    expect_right(p, w, x);
  }
  ASSERT_EQ(tuned_shapes(), 1);
  const fs::path file = fs::directory_iterator(folder_ / "tuning")->path();
  std::ifstream in(file);
  std::string format, subject;
  std::getline(in, format);
  std::getline(in, subject);
  cuda::TuningFile tuned(file, subject);
  ASSERT_EQ(tuned.entries().size(), 1u);
  const cuda::TuningKey key = tuned.entries().begin()->first;
  tuned.put(key, {.algo = {1, 2, 3, 4, 5, 6, 7, 8}, .microseconds = 1});
  ASSERT_TRUE(tuned.save().ok());
  CudaMachine m(a());
  cuda::open_cublaslt(*m.gpu);
  Product p(m, w, x);
  p.launch();
  expect_right(p, w, x);
}

TEST_P(CudaLibraryDense, WithoutAnAlgorithmTheTileKernelServes) {
  CudaMachine m(a());
  cuda::CublasLtApi api = cuda::load_cublaslt().value();
  api.heuristic = [](cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                     cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int,
                     cublasLtMatmulHeuristicResult_t*, int*) { return CUBLAS_STATUS_NOT_SUPPORTED; };
  m.gpu->parts().cublaslt = cuda::Cublaslt::open(*m.gpu, api).value();
  m.gpu->fast.cublaslt = true;
  project(m, 40, 128, {17, 40});
  gate_up(m, 40, 64, 20);
  EXPECT_EQ(tuned_shapes(), -1);
}

TEST(CudaLibraryOpen, AFailureSaysWhy) {
  CudaMachine m(DType::kBF16);
  cuda::CublasLtApi api = cuda::load_cublaslt().value();
  api.create = [](cublasLtHandle_t*) { return CUBLAS_STATUS_NOT_INITIALIZED; };
  const auto opened = cuda::Cublaslt::open(*m.gpu, api);
  ASSERT_FALSE(opened.ok());
  EXPECT_THAT(opened.error().message, testing::HasSubstr("cuBLASLt"));
}

INSTANTIATE_TEST_SUITE_P(Types, CudaLibrary, testing::ValuesIn(cases()), name_of);
INSTANTIATE_TEST_SUITE_P(Types, CudaLibraryDense,
                         testing::Values(Case{DType::kBF16, DType::kBF16}, Case{DType::kF16, DType::kF16}),
                         name_of);

}  // namespace
}  // namespace deepinfer::test
