#include "model/linear_source.h"

#include <algorithm>
#include <optional>

#include "base/check.h"
#include "base/log.h"
#include "quant/codes.h"
#include "quant/formats.h"
#include "quant/online.h"
#include "tensor/half.h"

namespace deepinfer {
namespace {

// One matrix: plain, or as codes.
struct Matrix {
  const RawTensor* plain = nullptr;
  std::optional<CodedMatrix> coded;
  int64_t rows = 0;
};

using Names = std::vector<std::pair<std::string, int64_t>>;

std::string layer_of(const std::string& name) {
  constexpr std::string_view kEnd = ".weight";
  return name.ends_with(kEnd) ? name.substr(0, name.size() - kEnd.size()) : name;
}

Result<Matrix> read_matrix(const Weights& w, const std::string& name, int64_t rows, int64_t cols,
                           ThreadPool* pool) {
  Matrix m{.rows = rows};
  if (w.quant != nullptr) {
    DI_ASSIGN(m.coded, w.quant->read(w.tensors, {layer_of(name), rows, cols}, pool));
    if (m.coded) return m;
  }
  DI_ASSIGN(m.plain, w.get(name, {rows, cols}));
  if (!is_quantized_online(w, name)) return m;
  DI_ASSIGN(m.coded, quantize_matrix(*m.plain, online_spec(w.online, cols), pool));
  m.plain = nullptr;
  return m;
}

// Smaller groups with the same scales.
void regroup(CodedMatrix& m, int64_t group) {
  if (m.group == group) return;
  const int64_t had = m.groups(), groups = (m.cols + group - 1) / group;
  const int64_t size = row_bytes(m.scale_dtype, 1);
  std::vector<std::byte> scales(static_cast<size_t>(m.rows * groups * size));
  std::vector<int16_t> zeros(m.zeros.empty() ? 0 : static_cast<size_t>(m.rows * groups));
  for (int64_t r = 0; r < m.rows; ++r)
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t from = r * had + g * group / m.group, to = r * groups + g;
      std::copy_n(m.scales.begin() + from * size, size, scales.begin() + to * size);
      if (!zeros.empty()) zeros[to] = m.zeros[from];
    }
  m.group = group;
  m.scales = std::move(scales);
  m.zeros = std::move(zeros);
}

void scales_to_f32(CodedMatrix& m) {
  if (m.scale_dtype == DType::kF32) return;
  const int64_t n = m.rows * m.groups();
  std::vector<std::byte> scales(static_cast<size_t>(n) * sizeof(float));
  for (int64_t i = 0; i < n; ++i)
    store_scale(DType::kF32, load_scale(m.scale_dtype, m.scales.data(), i), scales.data(), i);
  m.scale_dtype = DType::kF32;
  m.scales = std::move(scales);
}

bool fit_together(const std::vector<Matrix>& all) {
  int64_t group = INT64_MAX;
  for (const Matrix& m : all) {
    if (!m.coded) return false;
    group = std::min(group, m.coded->group);
  }
  const CodedMatrix& first = *all.front().coded;
  return std::all_of(all.begin(), all.end(), [&](const Matrix& m) {
    const CodedMatrix& c = *m.coded;
    return c.dtype == first.dtype && c.column_order == first.column_order &&
           (c.group == c.cols || c.group % group == 0);
  });
}

LinearRows as_codes(std::vector<Matrix> all, RowOrder order) {
  LinearRows out;
  int64_t group = INT64_MAX;
  bool one_dtype = true;
  for (Matrix& m : all) {
    group = std::min(group, m.coded->group);
    out.coded.push_back(std::move(*m.coded));
    one_dtype &= out.coded.back().scale_dtype == out.coded.front().scale_dtype;
  }
  for (CodedMatrix& m : out.coded) {
    regroup(m, group);
    if (!one_dtype) scales_to_f32(m);
  }
  out.source = out.coded.front().source();
  out.source.order = order;
  out.source.parts.clear();
  for (const CodedMatrix& m : out.coded) {
    out.source.parts.push_back(m.part());
    out.source.x_scale = std::max(out.source.x_scale, m.x_scale);
  }
  return out;
}

DType plain_dtype(const std::vector<Matrix>& all) {
  DType dtype = DType::kBF16;
  for (const Matrix& m : all)
    if (m.coded && m.coded->scale_dtype == DType::kF16) dtype = DType::kF16;
  for (const Matrix& m : all)
    if (m.plain != nullptr && info(m.plain->dtype).block_elems == 1) dtype = m.plain->dtype;
  return dtype;
}

void write_row(DType dtype, const std::vector<float>& row, std::byte* out) {
  for (size_t j = 0; j < row.size(); ++j) store_scale(dtype, row[j], out, static_cast<int64_t>(j));
}

// The values of one matrix in `dtype`.
Result<Buffer> plain_values(const Matrix& m, int64_t cols, DType dtype, ThreadPool* pool) {
  const int64_t bytes = row_bytes(dtype, cols);
  DI_ASSIGN(Buffer out, Buffer::allocate(static_cast<size_t>(m.rows * bytes)));
  const QuantFormat* format = m.coded ? nullptr : find_format(m.plain->dtype);
  if (!m.coded && (format == nullptr || m.plain->random))
    return make_error(ErrorCode::kModel, "{}: {} cannot be read beside quantized matrices", m.plain->origin,
                      info(m.plain->dtype).name);
  const LinearSource source = m.coded ? m.coded->source() : LinearSource{};
  const int threads = pool != nullptr ? pool->size() : 1;
  const auto work = [&](int t) {
    std::vector<float> row(static_cast<size_t>(cols));
    for (int64_t r = m.rows * t / threads; r < m.rows * (t + 1) / threads; ++r) {
      if (m.coded)
        dequantize_codes(source, source.parts[0], r, row.data());
      else
        format->dequantize(m.plain->data + r * row_bytes(m.plain->dtype, cols), cols, row.data());
      write_row(dtype, row, out.data() + r * bytes);
    }
  };
  if (pool != nullptr)
    pool->run(work);
  else
    work(0);
  return out;
}

Result<LinearRows> as_plain(const std::vector<Matrix>& all, const Names& names, int64_t cols, RowOrder order,
                            ThreadPool* pool) {
  LinearRows out;
  const DType dtype = plain_dtype(all);
  out.source = {.dtype = dtype, .cols = cols, .order = order};
  std::string list;
  for (const auto& [name, rows] : names) list += (list.empty() ? "" : ", ") + layer_of(name);
  log::info("{}: quantized differently, but read together: kept as {}", list, info(dtype).name);
  for (const Matrix& m : all) {
    if (m.coded) DI_TRY(check_codes(m.coded->source()));
    DI_ASSIGN(Buffer values, plain_values(m, cols, dtype, pool));
    out.source.parts.push_back({.data = values.data(), .rows = m.rows});
    out.plain.push_back(std::move(values));
  }
  return out;
}

Result<LinearRows> as_stored(const std::vector<Matrix>& all, int64_t cols, RowOrder order) {
  LinearRows out;
  const RawTensor& first = *all.front().plain;
  if (find_format(first.dtype) == nullptr)
    return make_error(
        ErrorCode::kModel,
        "{}: {} without a quantization_config that says what it means; expected F32, F16 or BF16, "
        "or a config.json with quantization_config",
        first.origin, info(first.dtype).name);
  out.source = {.dtype = first.dtype, .cols = cols, .order = order};
  for (const Matrix& m : all) {
    if (m.plain->dtype != first.dtype)
      return make_error(
          ErrorCode::kModel,
          "{}: got {}, expected {} as in {}: matrices that are read together need one dtype; convert "
          "the model again with one type for all of its layers' matrices",
          m.plain->origin, info(m.plain->dtype).name, info(first.dtype).name, first.origin);
    out.source.parts.push_back({.data = m.plain->data, .rows = m.rows, .random = m.plain->random});
  }
  return out;
}

}  // namespace

Result<LinearRows> read_linear(const Weights& weights, const Names& parts, int64_t cols, RowOrder order,
                               ThreadPool* pool) {
  std::vector<Matrix> all;
  bool coded = false;
  for (const auto& [name, rows] : parts) {
    DI_ASSIGN(Matrix m, read_matrix(weights, name, rows, cols, pool));
    coded |= m.coded.has_value();
    all.push_back(std::move(m));
  }
  if (!coded) return as_stored(all, cols, order);
  if (fit_together(all)) return as_codes(std::move(all), order);
  return as_plain(all, parts, cols, order, pool);
}

}  // namespace deepinfer
