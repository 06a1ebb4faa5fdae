#include "model/linear_source.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
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
  std::optional<RawTensor> plain;
  Buffer own;  // plain's data, where it does not stand so in the checkpoint
  std::optional<CodedMatrix> coded;
  int64_t rows = 0;
};

using Names = std::vector<NamedRows>;

std::string layer_of(const std::string& name) {
  constexpr std::string_view kEnd = ".weight";
  return name.ends_with(kEnd) ? name.substr(0, name.size() - kEnd.size()) : name;
}

void split(ThreadPool* pool, int64_t n, const std::function<void(int64_t first, int64_t last)>& work) {
  if (pool == nullptr) return work(0, n);
  const int threads = pool->size();
  pool->run([&](int t) { work(n * t / threads, n * (t + 1) / threads); });
}

// Some rows and columns of a tensor; a copy when columns are cut.
Result<void> cut_plain(const RawTensor& t, const Extent& rows, const Extent& cols, ThreadPool* pool,
                       Matrix& m) {
  m.plain = t;
  RawTensor& out = *m.plain;
  out.shape = {rows.run.count, cols.run.count};
  const int64_t pitch = row_bytes(t.dtype, cols.size), bytes = row_bytes(t.dtype, cols.run.count);
  out.bytes = static_cast<size_t>(rows.run.count * bytes);
  if (cols.all()) {
    if (out.random)
      out.random->first += rows.run.first * cols.size;
    else if (out.data != nullptr)
      out.data += rows.run.first * pitch;
    return {};
  }
  DI_ASSIGN(m.own, Buffer::allocate(out.bytes));
  const int64_t offset = row_bytes(t.dtype, cols.run.first);
  split(pool, rows.run.count, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      std::byte* const to = m.own.data() + r * bytes;
      const int64_t row = rows.run.first + r, from = row * cols.size + cols.run.first;
      if (t.random)
        write_random(*t.random, from, from + cols.run.count, to);
      else
        std::memcpy(to, t.data + row * pitch + offset, static_cast<size_t>(bytes));
    }
  });
  out.data = m.own.data();
  out.random.reset();
  return {};
}

// Some columns of codes with one scale a row.
Result<void> cut_codes(CodedMatrix& m, const Interval& run) {
  DI_CHECK(m.group == m.cols, "{} columns in groups of {} to cut", m.cols, m.group);
  const int64_t pitch = row_bytes(m.dtype, m.cols), bytes = row_bytes(m.dtype, run.count);
  const int64_t offset = row_bytes(m.dtype, run.first);
  DI_ASSIGN(Buffer codes, Buffer::allocate(static_cast<size_t>(m.rows * bytes)));
  for (int64_t r = 0; r < m.rows; ++r)
    std::memcpy(codes.data() + r * bytes, m.codes + r * pitch + offset, static_cast<size_t>(bytes));
  m.own_codes = std::move(codes);
  m.codes = m.own_codes.data();
  m.cols = m.group = run.count;
  return {};
}

// Rounded while loading: to the codes that the whole matrix would have.
Result<void> quantize_online(const Weights& w, const RawTensor& t, const Extent& rows, const Extent& cols,
                             ThreadPool* pool, Matrix& m) {
  const RoundSpec spec = online_spec(w.online, cols.size);
  const bool whole_rows = spec.group_of(cols.size) == cols.size;  // the scale is that of all columns
  DI_TRY(cut_plain(t, rows, whole_rows ? Extent(cols.size) : cols, pool, m));
  DI_ASSIGN(m.coded, quantize_matrix(*m.plain, spec, pool));
  m.plain.reset();
  m.own = {};
  if (whole_rows && !cols.all()) return cut_codes(*m.coded, cols.run);
  return {};
}

// The finest of 16 bits that holds all values of codes: F16 has three bits more than BF16, but less range.
DType plain_dtype(const CodedMatrix& m) {
  if (m.scale_dtype != DType::kBF16) return m.scale_dtype;
  constexpr float kLeast = 0x1p-14f, kMost = 128;  // times code - zero: normal numbers, below 65504
  for (int64_t i = 0; i < m.rows * m.groups(); ++i) {
    const float scale = std::fabs(load_scale(m.scale_dtype, m.scales.data(), i));
    if (scale != 0 && (scale < kLeast || scale > kMost)) return DType::kBF16;
  }
  return DType::kF16;
}

// Some columns of a matrix in act order, as plain numbers.
Result<void> plain_columns(const CodedMatrix& codes, const Interval& run, ThreadPool* pool, Matrix& m) {
  const LinearSource source = codes.source();
  DI_TRY(check_codes(source));
  const DType dtype = plain_dtype(codes);
  const int64_t bytes = row_bytes(dtype, run.count);
  DI_ASSIGN(m.own, Buffer::allocate(static_cast<size_t>(m.rows * bytes)));
  split(pool, m.rows, [&](int64_t first, int64_t last) {
    std::vector<float> row(static_cast<size_t>(codes.cols));
    for (int64_t r = first; r < last; ++r) {
      dequantize_codes(source, source.parts[0], r, row.data());
      for (int64_t j = 0; j < run.count; ++j)
        store_scale(dtype, row[run.first + j], m.own.data() + r * bytes, j);
    }
  });
  m.plain = RawTensor{.dtype = dtype,
                      .shape = {m.rows, run.count},
                      .data = m.own.data(),
                      .bytes = m.own.size(),
                      .origin = "columns in act order"};
  return {};
}

Result<Matrix> read_matrix(const Weights& w, const NamedRows& part, const Extent& cols, ThreadPool* pool) {
  const auto& [name, rows] = part;
  Matrix m{.rows = rows.run.count};
  if (w.quant != nullptr) {
    MatrixRequest request{layer_of(name), rows.size, cols.size};
    bool permuted = false;
    if (!cols.all()) {
      DI_ASSIGN(const auto groups, w.quant->columns(w.tensors, request));
      permuted = groups && groups->permuted;
    }
    const Interval& run = permuted ? Interval{0, cols.size} : cols.run;
    request.cut = Cut{rows.run.first, rows.run.count, run.first, run.count};
    DI_ASSIGN(m.coded, w.quant->read(w.tensors, request, pool));
    if (permuted) {
      const CodedMatrix codes = *std::exchange(m.coded, std::nullopt);
      DI_TRY(plain_columns(codes, cols.run, pool, m));
    }
    if (m.coded || m.plain) return m;
  }
  DI_ASSIGN(const RawTensor* t, w.get(name, {rows.size, cols.size}));
  if (is_quantized_online(w, name))
    DI_TRY(quantize_online(w, *t, rows, cols, pool, m));
  else
    DI_TRY(cut_plain(*t, rows, cols, pool, m));
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
    if (m.plain && info(m.plain->dtype).block_elems == 1) dtype = m.plain->dtype;
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
  split(pool, m.rows, [&](int64_t first, int64_t last) {
    std::vector<float> row(static_cast<size_t>(cols));
    for (int64_t r = first; r < last; ++r) {
      if (m.coded)
        dequantize_codes(source, source.parts[0], r, row.data());
      else
        format->dequantize(m.plain->data + r * row_bytes(m.plain->dtype, cols), cols, row.data());
      write_row(dtype, row, out.data() + r * bytes);
    }
  });
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

Result<LinearRows> as_stored(std::vector<Matrix> all, int64_t cols, RowOrder order) {
  LinearRows out;
  const RawTensor& first = *all.front().plain;
  if (find_format(first.dtype) == nullptr)
    return make_error(
        ErrorCode::kModel,
        "{}: {} without a quantization_config that says what it means; expected F32, F16 or BF16, "
        "or a config.json with quantization_config",
        first.origin, info(first.dtype).name);
  out.source = {.dtype = first.dtype, .cols = cols, .order = order};
  for (Matrix& m : all) {
    if (m.plain->dtype != first.dtype)
      return make_error(
          ErrorCode::kModel,
          "{}: got {}, expected {} as in {}: matrices that are read together need one dtype; convert "
          "the model again with one type for all of its layers' matrices",
          m.plain->origin, info(m.plain->dtype).name, info(first.dtype).name, first.origin);
    out.source.parts.push_back({.data = m.plain->data, .rows = m.rows, .random = m.plain->random});
    if (m.own.size() != 0) out.plain.push_back(std::move(m.own));
  }
  return out;
}

}  // namespace

Result<LinearRows> read_linear(const Weights& weights, const Names& parts, const Extent& cols, RowOrder order,
                               ThreadPool* pool) {
  std::vector<Matrix> all;
  bool coded = false;
  for (const NamedRows& part : parts) {
    DI_ASSIGN(Matrix m, read_matrix(weights, part, cols, pool));
    coded |= m.coded.has_value();
    all.push_back(std::move(m));
  }
  if (!coded) return as_stored(std::move(all), cols.run.count, order);
  if (fit_together(all)) return as_codes(std::move(all), order);
  return as_plain(all, parts, cols.run.count, order, pool);
}

Result<int64_t> column_unit(const Weights& w, const std::string& name, int64_t rows, int64_t cols) {
  constexpr int64_t kTile = 32;  // of the kernels for codes
  if (w.quant != nullptr) {
    DI_ASSIGN(const auto groups, w.quant->columns(w.tensors, {layer_of(name), rows, cols}));
    if (groups) return groups->permuted ? 1 : groups->group >= cols ? kTile : groups->group;
  }
  const RawTensor* t = w.find(name);
  if (t == nullptr) return int64_t{1};  // loading says so
  if (!is_quantized_online(w, name)) return int64_t{info(t->dtype).block_elems};
  const int64_t group = online_spec(w.online, cols).group_of(cols);
  return group >= cols ? kTile : group;
}

}  // namespace deepinfer
