#include "backend/cuda/self_check_cases.h"

namespace deepinfer::cuda {

std::vector<PathCheck> path_checks() {
  return {
      {"FA2 (attention of prompts)", "fa2", &FastPaths::fa2, check_fa2},
      {"XQA (attention of decode steps)", "xqa", &FastPaths::xqa, check_xqa},
      {"cuBLASLt (products of many tokens)", "cublaslt", &FastPaths::cublaslt, check_cublaslt},
      {"cuBLASLt in FP8 (products of many tokens)", "cublaslt_f8", &FastPaths::cublaslt_f8,
       check_cublaslt_f8},
      {"the FP8 tile kernel (products of many tokens)", "f8_tile", &FastPaths::f8_tile, check_f8_tile},
      {"the skinny kernel (products of few tokens)", "skinny", &FastPaths::skinny, check_skinny},
      {"the end of q, k and v in the skinny kernel", "finish", &FastPaths::finish, check_finish},
      {"the skinny kernel (products of few tokens with integer codes)", "skinny_codes",
       &FastPaths::skinny_codes, check_skinny_codes},
      {"the kernel of integer codes (products of 17 to 512 tokens)", "codes", &FastPaths::codes, check_codes},
      {"the overlapping start of kernels (PDL)", "pdl", &FastPaths::pdl, check_pdl},
  };
}

}  // namespace deepinfer::cuda
