#include "quant/unpack.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "quant/round.h"

namespace deepinfer {
namespace {

int16_t default_zero(DType dtype) {
  if (dtype == DType::kF8E4M3) return 0;
  return dtype == DType::kU4 ? 8 : 128;
}

// Rows that are unpacked at a time: whole words of the widest packing, in a tile that a cache holds.
constexpr int64_t kTileRows = 32;

// Splits [0, n) over the pool's threads; null: this one does all.
void split(ThreadPool* pool, int64_t n, const std::function<void(int64_t, int64_t)>& work) {
  if (pool == nullptr) return work(0, n);
  const int threads = pool->size();
  pool->run([&](int t) { work(n * t / threads, n * (t + 1) / threads); });
}

void put_row(DType dtype, const uint8_t* in, int64_t cols, std::byte* out) {
  if (dtype == DType::kU8) {
    std::memcpy(out, in, static_cast<size_t>(cols));
    return;
  }
  for (int64_t j = 0; j < cols / 2; ++j)
    out[j] = std::byte{static_cast<uint8_t>(in[2 * j] | in[2 * j + 1] << 4)};
}

std::string names(std::initializer_list<DType> dtypes) {
  std::string out;
  for (const DType d : dtypes) out += fmt::format("{}{}", out.empty() ? "" : " or ", info(d).name);
  return out;
}

}  // namespace

LinearPart CodedMatrix::part() const {
  return {
      .data = codes, .rows = rows, .scale = scales.data(), .zero = zeros.empty() ? nullptr : zeros.data()};
}

LinearSource CodedMatrix::source() const {
  return {.dtype = dtype,
          .cols = cols,
          .parts = {part()},
          .group = group,
          .scale_dtype = scale_dtype,
          .zero = zero,
          .column_order = column_order,
          .x_scale = x_scale};
}

Result<GroupCut> cut_groups(const MatrixRequest& request, int64_t group) {
  const Cut cut = request.cut.value_or(Cut{0, request.rows, 0, request.cols});
  DI_CHECK(group > 0 && cut.first_row >= 0 && cut.rows > 0 && cut.first_row + cut.rows <= request.rows &&
               cut.first_col >= 0 && cut.cols > 0 && cut.first_col + cut.cols <= request.cols,
           "{}: a cut of rows {} + {}, columns {} + {} out of {} x {}", request.layer, cut.first_row,
           cut.rows, cut.first_col, cut.cols, request.rows, request.cols);
  const int64_t end = cut.first_col + cut.cols;
  const bool one_group = group >= request.cols;  // its scale holds for any columns of the row
  if (!one_group && (cut.first_col % group != 0 || (end % group != 0 && end != request.cols)))
    return make_error(ErrorCode::kUnsupported,
                      "{}: columns {} to {} cut through groups of {}: use a number of devices that divides "
                      "the {} groups of a row",
                      request.layer, cut.first_col, end, group, (request.cols + group - 1) / group);
  GroupCut out{.first_row = cut.first_row, .rows = cut.rows, .first_col = cut.first_col, .cols = cut.cols};
  out.group = std::min(group, one_group ? cut.cols : group);
  out.all = one_group ? 1 : (request.cols + group - 1) / group;
  out.first_group = one_group ? 0 : cut.first_col / group;
  out.groups = one_group ? 1 : (cut.cols + group - 1) / group;
  if (out.groups == 1) out.group = cut.cols;
  return out;
}

const RawTensor* find(const TensorMap& tensors, const std::string& layer, std::string_view suffix) {
  const auto it = tensors.find(fmt::format("{}.{}", layer, suffix));
  return it == tensors.end() ? nullptr : &it->second;
}

Result<const RawTensor*> need(const TensorMap& tensors, const std::string& layer, std::string_view suffix,
                              const std::vector<int64_t>& shape, std::initializer_list<DType> dtypes) {
  const RawTensor* t = find(tensors, layer, suffix);
  if (t == nullptr)
    return make_error(ErrorCode::kModel,
                      "the tensor {}.{} is missing, expected {} [{}]: the checkpoint is incomplete; get it "
                      "again, or quantize it again",
                      layer, suffix, names(dtypes), fmt::join(shape, ", "));
  if (t->shape != shape || std::find(dtypes.begin(), dtypes.end(), t->dtype) == dtypes.end())
    return make_error(
        ErrorCode::kModel, "{}: got {} [{}], expected {} [{}] from config.json and its quantization_config",
        t->origin, info(t->dtype).name, fmt::join(t->shape, ", "), names(dtypes), fmt::join(shape, ", "));
  return t;
}

bool is_dense(const TensorMap& tensors, const std::string& layer) {
  const RawTensor* t = find(tensors, layer, "weight");
  return t != nullptr && (t->dtype == DType::kF32 || t->dtype == DType::kF16 || t->dtype == DType::kBF16);
}

Result<void> take_scales(const RawTensor& scales, const GroupCut& cut,
                         const std::function<int64_t(int64_t row, int64_t group)>& at, ThreadPool* pool,
                         CodedMatrix& out) {
  const int64_t size = row_bytes(scales.dtype, 1);
  out.scale_dtype = scales.dtype;
  out.scales.resize(static_cast<size_t>(cut.rows * cut.groups * size));
  std::atomic<int64_t> bad = -1;
  split(pool, cut.rows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * cut.groups; i < end * cut.groups; ++i) {
      const int64_t from = at(cut.first_row + i / cut.groups, cut.first_group + i % cut.groups);
      std::memcpy(out.scales.data() + i * size, scales.data + from * size, static_cast<size_t>(size));
      if (!std::isfinite(load_scale(scales.dtype, scales.data, from))) bad = i;
    }
  });
  if (bad < 0) return {};
  return make_error(ErrorCode::kModel,
                    "{}: the scale of row {}, group {} is {}, expected a finite number: the checkpoint is "
                    "damaged; get it again, or quantize it again",
                    scales.origin, cut.first_row + bad / cut.groups, cut.first_group + bad % cut.groups,
                    load_scale(scales.dtype, out.scales.data(), bad));
}

void take_zeros(const GroupCut& cut, const std::function<int16_t(int64_t row, int64_t group)>& zero,
                ThreadPool* pool, CodedMatrix& out) {
  out.zero = default_zero(out.dtype);
  out.zeros.resize(static_cast<size_t>(cut.rows * cut.groups));
  std::atomic<bool> own = false;
  split(pool, cut.rows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * cut.groups; i < end * cut.groups; ++i) {
      out.zeros[i] = zero(cut.first_row + i / cut.groups, cut.first_group + i % cut.groups);
      if (out.zeros[i] != out.zero) own.store(true, std::memory_order_relaxed);
    }
  });
  if (!own) out.zeros = {};
}

void transpose8(uint64_t (&x)[8]) {
  const auto swap = [&x](int i, int j, int shift, uint64_t mask) {
    const uint64_t t = ((x[i] >> shift) ^ x[j]) & mask;
    x[i] ^= t << shift;
    x[j] ^= t;
  };
  for (const int i : {0, 1, 2, 3}) swap(i, i + 4, 32, 0x00000000ffffffffu);
  for (const int i : {0, 1, 4, 5}) swap(i, i + 2, 16, 0x0000ffff0000ffffu);
  for (const int i : {0, 2, 4, 6}) swap(i, i + 1, 8, 0x00ff00ff00ff00ffu);
}

Result<void> take_codes(const GroupCut& cut, const UnpackRows& unpack, ThreadPool* pool, CodedMatrix& out) {
  const int64_t bytes = row_bytes(out.dtype, cut.cols);
  DI_ASSIGN(out.own_codes, Buffer::allocate(static_cast<size_t>(cut.rows * bytes)));
  out.codes = out.own_codes.data();
  const std::vector<int32_t>& order = out.column_order;
  const int64_t stride = cut.cols + 64;  // the rows of a tile in different cache sets
  const int64_t tiles = (cut.rows + kTileRows - 1) / kTileRows;
  split(pool, tiles, [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    std::vector<uint8_t> tile(static_cast<size_t>(kTileRows * stride));
    std::vector<uint8_t> sorted(order.empty() ? 0 : static_cast<size_t>(cut.cols));
    for (int64_t r = begin * kTileRows; r < std::min(end * kTileRows, cut.rows); r += kTileRows) {
      const int64_t count = std::min(kTileRows, cut.rows - r);
      unpack(cut.first_row + r, count, tile.data(), stride);
      for (int64_t i = 0; i < count; ++i) {
        const uint8_t* row = tile.data() + i * stride;
        for (size_t j = 0; j < sorted.size(); ++j) sorted[j] = row[order[j]];
        put_row(out.dtype, order.empty() ? row : sorted.data(), cut.cols,
                out.own_codes.data() + (r + i) * bytes);
      }
    }
  });
  return {};
}

Result<std::vector<int32_t>> sorted_columns(const RawTensor& g_idx, int64_t group) {
  const int64_t cols = g_idx.shape[0], groups = (cols + group - 1) / group;
  const auto* of = reinterpret_cast<const int32_t*>(g_idx.data);
  std::vector<int64_t> begin(static_cast<size_t>(groups) + 1);
  bool sorted = true;
  for (int64_t j = 0; j < cols; ++j) {
    if (of[j] < 0 || of[j] >= groups)
      return make_error(ErrorCode::kModel, "{}: column {} is of group {}, expected 0 to {}", g_idx.origin, j,
                        of[j], groups - 1);
    ++begin[of[j] + 1];
    sorted &= of[j] == j / group;
  }
  if (sorted) return std::vector<int32_t>();
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  for (int64_t g = 0; g < groups; ++g)
    if (begin[g] != g * group)
      return make_error(ErrorCode::kModel,
                        "{}: group {} starts at column {} when they are sorted, expected {}: groups of {} "
                        "columns each (group_size)",
                        g_idx.origin, g, begin[g], g * group, group);
  std::vector<int32_t> order(static_cast<size_t>(cols));
  for (int64_t j = 0; j < cols; ++j) order[begin[of[j]]++] = static_cast<int32_t>(j);
  return order;
}

Result<void> check_order_cut(const MatrixRequest& request, const CodedMatrix& out) {
  if (out.column_order.empty() || out.cols == request.cols) return {};
  return make_error(
      ErrorCode::kUnsupported,
      "{}: its columns stand in act order and cannot be split over devices; use a checkpoint with "
      "desc_act false",
      request.layer);
}

Result<ScaleBlocks> block_size(const JsonObject& config, const char* key) {
  const boost::json::value* list = config.find(key);
  if (list == nullptr) return ScaleBlocks{};
  ScaleBlocks out;
  if (list->is_array() && list->get_array().size() == 2) {
    const auto& sizes = list->get_array();
    if (sizes[0].is_int64()) out.rows = sizes[0].get_int64();
    if (sizes[1].is_int64()) out.cols = sizes[1].get_int64();
  }
  if (out.rows < 1 || out.rows > 1 << 20 || out.cols < 32 || out.cols > 1 << 20 || out.cols % 32 != 0)
    return make_error(ErrorCode::kModel,
                      "{}: {}: expected [rows, columns] of a block, as [128, 128]; columns a multiple of 32",
                      config.name(), key);
  return out;
}

Result<float> read_x_scale(const TensorMap& tensors, const std::string& layer) {
  const RawTensor* t = find(tensors, layer, "input_scale");
  if (t == nullptr) return 0.0f;
  const bool one = t->shape.empty() || t->shape == std::vector<int64_t>{1};
  const bool number = t->dtype == DType::kF32 || t->dtype == DType::kF16 || t->dtype == DType::kBF16;
  const float scale = one && number ? load_scale(t->dtype, t->data, 0) : 0;
  if (!(scale > 0) || !std::isfinite(scale))
    return make_error(ErrorCode::kModel, "{}: got {} [{}] of {}, expected one finite number above 0",
                      t->origin, info(t->dtype).name, fmt::join(t->shape, ", "), scale);
  return scale;
}

namespace {

Error wrong_scales(const RawTensor& scales, const MatrixRequest& m, ScaleBlocks blocks) {
  std::string expected = fmt::format("[], [1], [{}] or [{}, 1]", m.rows, m.rows);
  if (blocks.rows != 0)
    expected = fmt::format("[{}, {}]", (m.rows + blocks.rows - 1) / blocks.rows,
                           (m.cols + blocks.cols - 1) / blocks.cols);
  return make_error(ErrorCode::kModel, "{}: got {} [{}], expected F32, BF16 or F16 {} for a matrix [{}, {}]",
                    scales.origin, info(scales.dtype).name, fmt::join(scales.shape, ", "), expected, m.rows,
                    m.cols);
}

}  // namespace

Result<CodedMatrix> read_bytes(const TensorMap& tensors, const MatrixRequest& m, DType stored,
                               const RawTensor& scales, ScaleBlocks blocks, ThreadPool* pool) {
  DI_ASSIGN(const RawTensor* weight, need(tensors, m.layer, "weight", {m.rows, m.cols}, {stored}));
  using Shape = std::vector<int64_t>;
  const bool one = blocks.rows == 0 && (scales.shape.empty() || scales.shape == Shape{1} ||
                                        (m.rows != 1 && scales.shape == Shape{1, 1}));
  const bool by_row = blocks.rows == 0 && (scales.shape == Shape{m.rows} || scales.shape == Shape{m.rows, 1});
  const bool number =
      scales.dtype == DType::kF32 || scales.dtype == DType::kF16 || scales.dtype == DType::kBF16;
  const int64_t wide = blocks.rows == 0 ? 1 : (m.cols + blocks.cols - 1) / blocks.cols;
  const bool blocked =
      blocks.rows != 0 && scales.shape == Shape{(m.rows + blocks.rows - 1) / blocks.rows, wide};
  if (!number || !(one || by_row || blocked)) return wrong_scales(scales, m, blocks);
  DI_ASSIGN(const GroupCut cut, cut_groups(m, blocks.rows == 0 ? m.cols : blocks.cols));
  CodedMatrix out{.dtype = stored == DType::kI8 ? DType::kU8 : stored,
                  .rows = cut.rows,
                  .cols = cut.cols,
                  .group = cut.group};
  out.zero = default_zero(out.dtype);
  DI_TRY(take_scales(
      scales, cut,
      [&](int64_t row, int64_t group) {
        if (blocked) return row / blocks.rows * wide + group;
        return one ? 0 : row;
      },
      pool, out));
  const std::byte* from = weight->data + cut.first_row * m.cols + cut.first_col;
  if (stored == DType::kF8E4M3 && cut.cols == m.cols) {
    out.codes = from;
    return out;
  }
  DI_ASSIGN(out.own_codes, Buffer::allocate(static_cast<size_t>(cut.rows * cut.cols)));
  out.codes = out.own_codes.data();
  const std::byte flip{static_cast<uint8_t>(stored == DType::kI8 ? 0x80 : 0)};  // code = value + 128
  split(pool, cut.rows, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t c = 0; c < cut.cols; ++c)
        out.own_codes.data()[r * cut.cols + c] = from[r * m.cols + c] ^ flip;
  });
  return out;
}

}  // namespace deepinfer
