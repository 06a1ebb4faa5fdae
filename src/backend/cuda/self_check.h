// The self-check at start: the first time a build meets a card and a driver, each fast path is compared with
// the plain kernel on a few small cases. A path that disagrees or fails is switched off with a warning; the
// verdict is kept in a file, so that later starts ask nothing of the device.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "backend/cuda_gpu.h"
#include "deepinfer/result.h"

namespace deepinfer::cuda {

// What the plain and the fast kernel made of the same input. Right: fast is finite and, for each stretch of
// `row` values, |fast - plain| <= bound * |plain| in the Euclidean norm.
struct Comparison {
  std::string shape;  // of the warning: "head dimension 128, group 4"
  std::vector<float> plain, fast;
  size_t row = 1;
  double bound = 0;
};

struct PathCheck {
  std::string name;  // of the warning: "XQA (attention of decode steps)"
  std::string key;   // of the file
  bool FastPaths::* flag = nullptr;
  // All of its cases; an empty list is right. May throw CudaError.
  std::function<Result<std::vector<Comparison>>(Gpu&)> run;
};

// Those of this build. Only paths whose flag is on are run.
std::vector<PathCheck> path_checks();

// Clears the flags in gpu.fast of paths that are wrong, and of one whose check did not come to an end the
// last time. The file is <folder>/gpu-check-<card>.json; one that is broken or cannot be written means that
// the checks run again. Not in a capture. Throws CudaError when a path broke the device's context: it is off
// from the next start on.
void self_check(Gpu& gpu, const std::vector<PathCheck>& checks, const std::filesystem::path& folder);

// Empty when the comparison is right, else what is wrong.
std::string difference(const Comparison& c);

}  // namespace deepinfer::cuda
