// The host bodies of mma and ldmatrix: 32 lanes' fragments at once. Without sanitizers and with optimization:
// these loops are most of what a GEMM's test runs.
#include <cstring>

#include "backend/cuda/ptx_matrix.h"

namespace deepinfer::cuda::emulated {

void multiply(void* const* args, int k, Decode decode) {
  const int part = k / 8;  // elements of one register: 2 or 4
  float a[16][32], b[32][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& m = *static_cast<const Mma*>(args[lane]);
    const int g = lane / 4, t = lane % 4;
    float fa[16], fb[8];
    decode(m.a, 4, fa);
    decode(m.b, 2, fb);
    for (int i = 0; i < part; ++i) {
      const int low = part * t + i, high = k / 2 + low;
      a[g][low] = fa[i];
      a[g + 8][low] = fa[part + i];
      a[g][high] = fa[2 * part + i];
      a[g + 8][high] = fa[3 * part + i];
      b[low][g] = fb[i];
      b[high][g] = fb[part + i];
    }
  }
  for (int row = 0; row < 16; ++row) {
    float sum[8] = {};
    for (int i = 0; i < k; ++i)
      for (int n = 0; n < 8; ++n) sum[n] += a[row][i] * b[i][n];
    for (int t = 0; t < 4; ++t) {
      float* d = static_cast<const Mma*>(args[(row % 8) * 4 + t])->d + (row < 8 ? 0 : 2);
      d[0] += sum[2 * t];
      d[1] += sum[2 * t + 1];
    }
  }
}

void load_matrices(void* const* args, int count, bool transposed) {
  for (int i = 0; i < count; ++i) {
    uint16_t m[8][8];
    for (int row = 0; row < 8; ++row)
      std::memcpy(m[row], static_cast<const LoadMatrix*>(args[8 * i + row])->row, sizeof m[row]);
    for (int lane = 0; lane < 32; ++lane) {
      const int r = lane / 4, c = 2 * (lane % 4);
      const uint32_t low = transposed ? m[c][r] : m[r][c];
      const uint32_t high = transposed ? m[c + 1][r] : m[r][c + 1];
      static_cast<LoadMatrix*>(args[lane])->r[i] = low | high << 16;
    }
  }
}

}  // namespace deepinfer::cuda::emulated
