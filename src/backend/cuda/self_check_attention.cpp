// FA2, XQA and overlapping starts against the own attention kernel.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "backend/cuda/fast/attention_sample.h"
#include "backend/cuda/fast/fast_attention.h"
#include "backend/cuda/fast/units.h"
#include "backend/cuda/self_check_cases.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

// Probabilities and results are rounded to 8 bits at least: a right kernel differs by less than half of this.
constexpr double kAttentionBound = 1.0 / 64;

// One-token rows with and without a part of a page, several tiles of XQA, padding; prefill with and without a
// context.
const std::vector<SampleRow> kRows = {
    {.context = 0},
    {.context = 15},
    {.context = 16},
    {.context = 700},
    {.padding = true},
    {.context = 299},
    {.tokens = 37},
    {.context = 19, .tokens = 130},
    {.context = 333, .tokens = 5},
};

std::string describe(const SampleShape& s) {
  return fmt::format("head dimension {}, group {}, {} cache, window {}", s.dim, s.heads / s.kv_heads,
                     info(s.kv_dtype).name, s.window);
}

Result<Buffer> scratch_of(Gpu& gpu, const PagedAttention& a) {
  return gpu.allocate(std::max<size_t>(attention_scratch_bytes(gpu, a), 1));
}

Result<void> run_plain(Gpu& gpu, const PagedAttention& a) {
  DI_ASSIGN(const Buffer scratch, scratch_of(gpu, a));
  attention_plain(gpu, a, scratch.data());
  gpu.synchronize();
  return {};
}

// Both kernels on one sample; the tokens that the fast one serves.
Result<void> compare_attention(Gpu& gpu, const SampleShape& shape, bool decode,
                               std::vector<Comparison>& out) {
  DI_ASSIGN(const auto sample, AttentionSample::make(gpu, shape));
  const PagedAttention& a = sample->attention();
  if (!(decode ? xqa_supports(gpu, a) : fa2_supports(gpu, a))) return {};
  const int first = decode ? 0 : sample->decode_rows(),
            last = decode ? sample->decode_rows() : sample->tokens();
  Comparison c{.shape = describe(shape), .row = static_cast<size_t>(shape.dim), .bound = kAttentionBound};
  DI_TRY(run_plain(gpu, a));
  DI_ASSIGN(c.plain, sample->read_out(gpu, first, last));
  sample->clear_out(gpu);
  decode ? xqa_decode(gpu, a) : fa2_prefill(gpu, a);
  DI_ASSIGN(c.fast, sample->read_out(gpu, first, last));
  out.push_back(std::move(c));
  return {};
}

class SavedPdl {
 public:
  SavedPdl(Gpu& gpu, bool pdl) : gpu_(gpu), saved_(std::exchange(gpu.pdl, pdl)) {}
  ~SavedPdl() { gpu_.pdl = saved_; }
  SavedPdl(const SavedPdl&) = delete;

 private:
  Gpu& gpu_;
  bool saved_;
};

}  // namespace

Result<std::vector<Comparison>> check_fa2(Gpu& gpu) {
  std::vector<Comparison> out;
  for (const Fa2Unit& unit : fa2_units())
    for (const int dim : {64, 128})
      // Group 1 takes the smaller query tile, 7 the larger one.
      for (const auto& [group, window] : {std::pair{1, 0}, {7, 0}, {7, 100}})
        DI_TRY(compare_attention(gpu,
                                 {.heads = 2 * group,
                                  .kv_heads = 2,
                                  .dim = dim,
                                  .window = window,
                                  .activation = unit.activation,
                                  .kv_dtype = unit.activation,
                                  .rows = kRows},
                                 false, out));
  return out;
}

Result<std::vector<Comparison>> check_xqa(Gpu& gpu) {
  std::vector<Comparison> out;
  for (const XqaUnit& unit : xqa_units())
    for (const int window : {0, 100}) {
      if (window > 0 && unit.group != 4) continue;  // the same code for all
      const bool fp8 = unit.kv_dtype == DType::kF8E4M3;
      DI_TRY(compare_attention(gpu,
                               {.heads = 2 * unit.group,
                                .kv_heads = 2,
                                .dim = unit.dim,
                                .window = window,
                                .activation = unit.activation,
                                .kv_dtype = unit.kv_dtype,
                                .k_scale = fp8 ? 0.75f : 1.0f,
                                .v_scale = fp8 ? 0.5f : 1.0f,
                                .rows = kRows},
                               true, out));
    }
  return out;
}

// Kernels that each need what the one before wrote, with and without overlapping starts: the same bits.
Result<std::vector<Comparison>> check_pdl(Gpu& gpu) {
  constexpr int kSteps = 6;
  SampleShape shape{
      .heads = 4, .kv_heads = 2, .dim = 64, .rows = {{.context = 40}, {.context = 3, .tokens = 20}}};
  Comparison c{.shape = fmt::format("{} dependent kernels", kSteps), .row = 64};
  for (const bool pdl : {false, true}) {
    DI_ASSIGN(const auto sample, AttentionSample::make(gpu, shape));
    DI_ASSIGN(const auto other, AttentionSample::make(gpu, shape));
    PagedAttention forth = sample->attention(), back = forth;
    forth.out = other->attention().out;
    back.q = forth.out;
    DI_ASSIGN(const Buffer scratch, scratch_of(gpu, forth));
    {
      const SavedPdl saved(gpu, pdl);
      for (int i = 0; i < kSteps; ++i) attention_plain(gpu, i % 2 == 0 ? forth : back, scratch.data());
    }
    DI_ASSIGN(auto values, sample->read_out(gpu, 0, sample->tokens()));
    (pdl ? c.fast : c.plain) = std::move(values);
  }
  std::vector<Comparison> out;
  out.push_back(std::move(c));
  return out;
}

}  // namespace deepinfer::cuda
