#include "model/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <optional>
#include <set>

#include "base/check.h"
#include "base/shown.h"
#include "model/sniff.h"

namespace deepinfer {
namespace {

constexpr uint64_t kMaxKeyBytes = 65535;  // of the specification
constexpr uint64_t kMaxTensorName = 1024;
constexpr uint64_t kMaxAlignment = 65536;
constexpr uint32_t kMaxDims = 4;

static_assert(std::endian::native == std::endian::little, "GGUF is read as it stands");

// Reads forward; every step is checked against the end of the file.
class Reader {
 public:
  Reader(std::span<const std::byte> file, const std::string& name) : file_(file), name_(name) {}

  uint64_t position() const { return position_; }
  uint64_t left() const { return file_.size() - position_; }
  const std::string& name() const { return name_; }

  template <class T>
  Result<T> read(std::string_view what) {
    DI_ASSIGN(const std::byte* p, take(sizeof(T), what));
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
  }

  Result<const std::byte*> take(uint64_t bytes, std::string_view what) {
    if (bytes > left())
      return make_error(
          ErrorCode::kModel,
          "{}: truncated or damaged: {} at byte {} needs {} bytes, but the file ends after {}; get the "
          "file again",
          name_, what, position_, bytes, file_.size());
    const std::byte* p = file_.data() + position_;
    position_ += bytes;
    return p;
  }

  Result<std::string_view> string(std::string_view what) {
    DI_ASSIGN(const uint64_t size, read<uint64_t>(what));
    DI_ASSIGN(const std::byte* p, take(size, what));
    return std::string_view(reinterpret_cast<const char*>(p), size);
  }

  // A count of things that take at least `min_bytes` each: nothing is allocated for more than fit.
  Result<uint64_t> count(std::string_view what, uint64_t min_bytes) {
    DI_ASSIGN(const uint64_t n, read<uint64_t>(what));
    if (n > left() / min_bytes)
      return make_error(
          ErrorCode::kModel,
          "{}: damaged: the {} is {}, but the {} bytes after byte {} can hold at most {}; get the "
          "file again",
          name_, what, n, left(), position_, left() / min_bytes);
    return n;
  }

 private:
  std::span<const std::byte> file_;
  const std::string& name_;
  uint64_t position_ = 0;
};

// Bytes of a value of fixed size; 0 for strings, arrays and unknown types.
uint64_t value_bytes(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return 1;
    case GgufType::kU16:
    case GgufType::kI16:
      return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32:
      return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
      return 8;
    default:
      return 0;
  }
}

Error not_a_bool(const Reader& r, std::string_view key) {
  return make_error(ErrorCode::kModel, "{}: key '{}': a bool is neither 0 nor 1: the file is damaged",
                    r.name(), shown(key));
}

Result<GgufValue> read_array(Reader& r, std::string_view key) {
  DI_ASSIGN(const auto type, r.read<uint32_t>("the type of an array"));
  GgufArray array;
  array.type = static_cast<GgufType>(type);
  const uint64_t bytes = value_bytes(array.type);
  if (array.type == GgufType::kArray)
    return make_error(ErrorCode::kModel,
                      "{}: key '{}': an array of arrays; no model uses them and they are not read", r.name(),
                      shown(key));
  if (bytes == 0 && array.type != GgufType::kString)
    return make_error(ErrorCode::kModel, "{}: key '{}': an array of the unknown type {}; known are 0 to 12",
                      r.name(), shown(key), type);
  DI_ASSIGN(array.count, r.count("length of an array", bytes == 0 ? sizeof(uint64_t) : bytes));
  if (array.type != GgufType::kString) {
    DI_ASSIGN(array.data,
              r.take(array.count * bytes, "an array"));  // cannot overflow: the count fits the file
    if (array.type == GgufType::kBool &&
        std::any_of(array.data, array.data + array.count, [](std::byte b) { return b > std::byte{1}; }))
      return not_a_bool(r, key);
    return GgufValue(std::move(array));
  }
  array.strings.reserve(array.count);
  for (uint64_t i = 0; i < array.count; ++i) {
    DI_ASSIGN(const std::string_view s, r.string("a string of an array"));
    array.strings.push_back(s);
  }
  return GgufValue(std::move(array));
}

template <class T, class Wide>
Result<GgufValue> read_number(Reader& r) {
  DI_ASSIGN(const T value, r.read<T>("a value"));
  return GgufValue(static_cast<Wide>(value));
}

Result<GgufValue> read_value(Reader& r, std::string_view key) {
  DI_ASSIGN(const auto type, r.read<uint32_t>("the type of a value"));
  switch (static_cast<GgufType>(type)) {
    case GgufType::kU8:
      return read_number<uint8_t, uint64_t>(r);
    case GgufType::kI8:
      return read_number<int8_t, int64_t>(r);
    case GgufType::kU16:
      return read_number<uint16_t, uint64_t>(r);
    case GgufType::kI16:
      return read_number<int16_t, int64_t>(r);
    case GgufType::kU32:
      return read_number<uint32_t, uint64_t>(r);
    case GgufType::kI32:
      return read_number<int32_t, int64_t>(r);
    case GgufType::kU64:
      return read_number<uint64_t, uint64_t>(r);
    case GgufType::kI64:
      return read_number<int64_t, int64_t>(r);
    case GgufType::kF32:
      return read_number<float, double>(r);
    case GgufType::kF64:
      return read_number<double, double>(r);
    case GgufType::kBool: {
      DI_ASSIGN(const auto byte, r.read<uint8_t>("a bool"));
      if (byte > 1) return not_a_bool(r, key);
      return GgufValue(byte == 1);
    }
    case GgufType::kString: {
      DI_ASSIGN(const std::string_view s, r.string("a string"));
      return GgufValue(s);
    }
    case GgufType::kArray:
      return read_array(r, key);
  }
  return make_error(ErrorCode::kModel, "{}: key '{}': the unknown value type {}; known are 0 to 12", r.name(),
                    shown(key), type);
}

Result<void> read_metadata(Reader& r, uint64_t count, GgufFile& out) {
  for (uint64_t i = 0; i < count; ++i) {
    DI_ASSIGN(const std::string_view key, r.string("a metadata key"));
    if (key.empty() || key.size() > kMaxKeyBytes)
      return make_error(ErrorCode::kModel,
                        "{}: metadata key {} has {} bytes, expected 1 to {}: the file is damaged", r.name(),
                        i, key.size(), kMaxKeyBytes);
    DI_ASSIGN(GgufValue value, read_value(r, key));
    if (!out.metadata.emplace(key, std::move(value)).second)
      return make_error(ErrorCode::kModel, "{}: the metadata key '{}' stands in the file twice", r.name(),
                        shown(key));
  }
  if (const auto it = out.metadata.find("general.alignment"); it != out.metadata.end()) {
    const uint64_t* alignment = std::get_if<uint64_t>(&it->second);
    if (alignment == nullptr || !std::has_single_bit(*alignment) || *alignment < 8 ||
        *alignment > kMaxAlignment)
      return make_error(
          ErrorCode::kModel, "{}: general.alignment is {}, expected a power of two from 8 to {}", r.name(),
          alignment != nullptr ? std::to_string(*alignment) : "not an unsigned integer", kMaxAlignment);
    out.alignment = *alignment;
  }
  return {};
}

struct GgmlType {
  uint32_t number;
  const char* name;
  std::optional<DType> dtype;  // none: not built
};

constexpr GgmlType kGgmlTypes[] = {
    {0, "F32", DType::kF32},
    {1, "F16", DType::kF16},
    {2, "Q4_0", DType::kQ4_0},
    {3, "Q4_1", DType::kQ4_1},
    {4, "Q4_2", {}},
    {5, "Q4_3", {}},
    {6, "Q5_0", {}},
    {7, "Q5_1", {}},
    {8, "Q8_0", DType::kQ8_0},
    {9, "Q8_1", {}},
    {10, "Q2_K", {}},
    {11, "Q3_K", {}},
    {12, "Q4_K", {}},
    {13, "Q5_K", {}},
    {14, "Q6_K", {}},
    {15, "Q8_K", {}},
    {16, "IQ2_XXS", {}},
    {17, "IQ2_XS", {}},
    {18, "IQ3_XXS", {}},
    {19, "IQ1_S", {}},
    {20, "IQ4_NL", {}},
    {21, "IQ3_S", {}},
    {22, "IQ2_S", {}},
    {23, "IQ4_XS", {}},
    {24, "I8", DType::kI8},
    {25, "I16", {}},
    {26, "I32", DType::kI32},
    {27, "I64", {}},
    {28, "F64", {}},
    {29, "IQ1_M", {}},
    {30, "BF16", DType::kBF16},
    {31, "Q4_0_4_4", {}},
    {32, "Q4_0_4_8", {}},
    {33, "Q4_0_8_8", {}},
    {34, "TQ1_0", {}},
    {35, "TQ2_0", {}},
    {36, "IQ4_NL_4_4", {}},
    {37, "IQ4_NL_4_8", {}},
    {38, "IQ4_NL_8_8", {}},
    {39, "MXFP4", {}},
    {40, "NVFP4", {}},
    {41, "Q1_0", {}},
};

Result<DType> read_dtype(Reader& r, std::string_view tensor) {
  DI_ASSIGN(const auto number, r.read<uint32_t>("the type of a tensor"));
  const auto* it = std::find_if(std::begin(kGgmlTypes), std::end(kGgmlTypes),
                                [&](const GgmlType& t) { return t.number == number; });
  if (it != std::end(kGgmlTypes) && it->dtype) return *it->dtype;
  const std::string known = it == std::end(kGgmlTypes) ? "an unknown number" : it->name;
  return make_error(
      ErrorCode::kModel,
      "{}: tensor '{}': type {} ({}) is not supported; expected F32, F16, BF16, Q4_0, Q4_1 or Q8_0. "
      "Get the model in one of these, or convert it: llama-quantize --allow-requantize IN OUT q8_0",
      r.name(), shown(tensor), number, known);
}

Result<GgufTensor> read_tensor(Reader& r, uint64_t index) {
  GgufTensor t;
  DI_ASSIGN(t.name, r.string("a tensor's name"));
  if (t.name.empty() || t.name.size() > kMaxTensorName)
    return make_error(ErrorCode::kModel,
                      "{}: the name of tensor {} has {} bytes, expected 1 to {}: the file is damaged",
                      r.name(), index, t.name.size(), kMaxTensorName);
  DI_ASSIGN(const auto dims, r.read<uint32_t>("a tensor's number of dimensions"));
  if (dims < 1 || dims > kMaxDims)
    return make_error(ErrorCode::kModel,
                      "{}: tensor '{}' has {} dimensions, expected 1 to {}: the file is damaged", r.name(),
                      shown(t.name), dims, kMaxDims);
  int64_t elems = 1;
  for (uint32_t d = 0; d < dims; ++d) {
    DI_ASSIGN(const auto size, r.read<int64_t>("a tensor's shape"));
    if (size < 1 || __builtin_mul_overflow(elems, size, &elems))
      return make_error(ErrorCode::kModel,
                        "{}: tensor '{}': dimension {} is {}: not a size that a file can hold", r.name(),
                        shown(t.name), d, size);
    t.shape.insert(t.shape.begin(), size);
  }
  DI_ASSIGN(t.dtype, read_dtype(r, t.name));
  const DTypeInfo& type = info(t.dtype);
  if (t.shape.back() % type.block_elems != 0)
    return make_error(ErrorCode::kModel,
                      "{}: tensor '{}': a row of {} elements does not divide into blocks of {} ({})",
                      r.name(), shown(t.name), t.shape.back(), type.block_elems, type.name);
  if (__builtin_mul_overflow(static_cast<uint64_t>(elems / type.block_elems),
                             static_cast<uint64_t>(type.block_bytes), &t.bytes))
    return make_error(ErrorCode::kModel, "{}: tensor '{}': {} elements of {} are more than a file can hold",
                      r.name(), shown(t.name), elems, type.name);
  DI_ASSIGN(t.offset, r.read<uint64_t>("a tensor's offset"));  // from the start of the data, until placed
  return t;
}

// Rounds up; the caller has checked that it cannot overflow.
uint64_t align_up(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

// Turns offsets into those of the file and checks that the tensors fill the data section one after another.
Result<void> place_tensors(uint64_t header_end, uint64_t file_bytes, const std::string& name, GgufFile& out) {
  if (out.tensors.empty()) return {};
  const uint64_t start = align_up(header_end, out.alignment);
  const uint64_t size = file_bytes > start ? file_bytes - start : 0;
  std::vector<GgufTensor*> order;
  for (GgufTensor& t : out.tensors) order.push_back(&t);
  std::sort(order.begin(), order.end(),
            [](const GgufTensor* a, const GgufTensor* b) { return a->offset < b->offset; });
  uint64_t expected = 0;
  for (GgufTensor* t : order) {
    if (t->offset > size || t->bytes > size - t->offset)
      return make_error(
          ErrorCode::kModel,
          "{}: truncated or damaged: tensor '{}' needs {} bytes at byte {} of the data, which has {}; "
          "get the file again",
          name, shown(t->name), t->bytes, t->offset, size);
    if (t->offset != expected)
      return make_error(
          ErrorCode::kModel,
          "{}: tensor '{}' starts at byte {} of the data, expected {} ({}): the file is damaged", name,
          shown(t->name), t->offset, expected,
          t->offset < expected ? "it overlaps the tensor before it" : "there is a hole before it");
    expected = align_up(t->offset + t->bytes, out.alignment);
    t->offset += start;
  }
  if (size > expected)
    return make_error(ErrorCode::kModel,
                      "{}: {} bytes follow the last tensor, expected none: the file is damaged", name,
                      size - expected);
  return {};
}

Result<void> read_tensors(Reader& r, uint64_t count, GgufFile& out) {
  std::set<std::string_view> names;
  for (uint64_t i = 0; i < count; ++i) {
    DI_ASSIGN(GgufTensor t, read_tensor(r, i));
    if (!names.insert(t.name).second)
      return make_error(ErrorCode::kModel, "{}: the tensor '{}' stands in the file twice", r.name(),
                        shown(t.name));
    out.tensors.push_back(std::move(t));
  }
  return {};
}

Result<uint32_t> read_version(Reader& r, std::span<const std::byte> file) {
  if (file.size() < 4 || std::memcmp(file.data(), "GGUF", 4) != 0)
    return make_error(ErrorCode::kModel, "{}: not a GGUF file; it looks like {}", r.name(), looks_like(file));
  DI_TRY(r.take(4, "the magic number"));
  DI_ASSIGN(const auto version, r.read<uint32_t>("the version"));
  if ((version & 0xffff) == 0 && version != 0)
    return make_error(ErrorCode::kModel,
                      "{}: a big-endian GGUF file; only little-endian is read: convert it with "
                      "gguf-convert-endian, or get the usual file",
                      r.name());
  if (version < 2 || version > 3)
    return make_error(ErrorCode::kModel, "{}: GGUF version {}, expected 2 or 3; {}", r.name(), version,
                      version < 2 ? "convert the model again" : "it is newer than this program, or damaged");
  return version;
}

}  // namespace

Result<GgufFile> parse_gguf(std::span<const std::byte> file, const std::string& name) {
  Reader r(file, name);
  GgufFile out;
  DI_ASSIGN(out.version, read_version(r, file));
  // The least that a tensor takes: name 8 + 1, dimensions 4 + 8, type 4, offset 8; a key 8 + 1, type 4,
  // value 1.
  DI_ASSIGN(const uint64_t tensors, r.count("number of tensors", 33));
  DI_ASSIGN(const uint64_t keys, r.count("number of metadata keys", 14));
  DI_TRY(read_metadata(r, keys, out));
  DI_TRY(read_tensors(r, tensors, out));
  DI_TRY(place_tensors(r.position(), file.size(), name, out));
  return out;
}

}  // namespace deepinfer
