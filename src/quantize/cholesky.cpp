#include "quantize/cholesky.h"

#include <algorithm>
#include <cmath>

#include "quantize/gemm.h"

namespace deepinfer::quantize {
namespace {

constexpr int64_t kBlock = 96;

// h = R R^T with R upper triangular, from the last block to the first. Then h^-1 = R^-T R^-1, so U = R^-1:
// one factorization and one inversion instead of an inversion between two factorizations.

// The block [at, at + size) on the diagonal, in place. False: not positive definite.
bool factor_diagonal(std::vector<float>& h, int64_t n, int64_t at, int64_t size) {
  for (int64_t j = at + size - 1; j >= at; --j) {
    double pivot = h[j * n + j];
    for (int64_t k = j + 1; k < at + size; ++k) pivot -= static_cast<double>(h[j * n + k]) * h[j * n + k];
    if (!(pivot > 0) || !std::isfinite(pivot)) return false;
    const double root = std::sqrt(pivot);
    h[j * n + j] = static_cast<float>(root);
    for (int64_t i = at; i < j; ++i) {
      double sum = h[i * n + j];
      for (int64_t k = j + 1; k < at + size; ++k) sum -= static_cast<double>(h[i * n + k]) * h[j * n + k];
      h[i * n + j] = static_cast<float>(sum / root);
    }
  }
  return true;
}

// Rows above the block: X R^T = h, where R is the factored block.
void solve_above(ThreadPool& pool, std::vector<float>& h, int64_t n, int64_t at, int64_t size) {
  pool.run([&](int thread) {
    for (int64_t i = thread; i < at; i += pool.size())
      for (int64_t j = at + size - 1; j >= at; --j) {
        double sum = h[i * n + j];
        for (int64_t k = j + 1; k < at + size; ++k) sum -= static_cast<double>(h[i * n + k]) * h[j * n + k];
        h[i * n + j] = static_cast<float>(sum / h[j * n + j]);
      }
  });
}

bool factor(ThreadPool& pool, std::vector<float>& h, int64_t n) {
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  for (int64_t b = blocks - 1; b >= 0; --b) {
    const int64_t at = b * kBlock, size = std::min(kBlock, n - at);
    if (!factor_diagonal(h, n, at, size)) return false;
    if (at == 0) break;
    solve_above(pool, h, n, at, size);
    const MatrixView x{h.data() + at, at, size, n, 1};
    multiply(pool, {.a = x,
                    .b = x.transposed(),
                    .c = h.data(),
                    .c_stride = n,
                    .add = true,
                    .negate = true,
                    .upper_only = true});
  }
  return true;
}

// The inverse of the block of r on the diagonal, into u.
void invert_diagonal(const std::vector<float>& r, std::vector<float>& u, int64_t n, int64_t at,
                     int64_t size) {
  for (int64_t j = at; j < at + size; ++j) {
    u[j * n + j] = 1.0f / r[j * n + j];
    for (int64_t i = j - 1; i >= at; --i) {
      double sum = 0;
      for (int64_t k = i + 1; k <= j; ++k) sum -= static_cast<double>(r[i * n + k]) * u[k * n + j];
      u[i * n + j] = static_cast<float>(sum / r[i * n + i]);
    }
  }
}

// Rows of blocks from the last to the first: U[b, >b] = -U[b, b] (R[b, >b] U[>b, >b]).
std::vector<float> invert(ThreadPool& pool, const std::vector<float>& r, int64_t n) {
  std::vector<float> u(static_cast<size_t>(n * n), 0.0f), between(static_cast<size_t>(kBlock * n));
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  for (int64_t b = blocks - 1; b >= 0; --b) {
    const int64_t at = b * kBlock, size = std::min(kBlock, n - at), after = at + size, rest = n - after;
    invert_diagonal(r, u, n, at, size);
    if (rest == 0) continue;
    multiply(pool, {.a = {r.data() + at * n + after, size, rest, n, 1},
                    .b = {u.data() + after * n + after, rest, rest, n, 1},
                    .c = between.data(),
                    .c_stride = rest});
    multiply(pool, {.a = {u.data() + at * n + at, size, size, n, 1},
                    .b = {between.data(), size, rest, rest, 1},
                    .c = u.data() + at * n + after,
                    .c_stride = n,
                    .negate = true});
  }
  return u;
}

}  // namespace

std::vector<float> inverse_cholesky(ThreadPool& pool, std::vector<float> h, int64_t n) {
  if (!factor(pool, h, n)) return {};
  return invert(pool, h, n);
}

}  // namespace deepinfer::quantize
