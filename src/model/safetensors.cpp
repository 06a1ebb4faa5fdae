#include "model/safetensors.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "base/check.h"
#include "base/json_file.h"
#include "base/shown.h"
#include "model/sniff.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr uint64_t kMaxHeader = 100'000'000;  // as the reference implementation
constexpr uint64_t kMaxIndex = 100'000'000;
constexpr size_t kMaxRank = 8;

struct SafetensorsType {
  std::string_view name;
  int bits;
  std::optional<DType> dtype;
};

constexpr SafetensorsType kTypes[] = {
    {"F32", 32, DType::kF32},
    {"F16", 16, DType::kF16},
    {"BF16", 16, DType::kBF16},
    {"I32", 32, DType::kI32},
    {"I8", 8, DType::kI8},
    {"U8", 8, DType::kU8},
    {"F64", 64, {}},
    {"I64", 64, {}},
    {"U64", 64, {}},
    {"U32", 32, {}},
    {"I16", 16, {}},
    {"U16", 16, {}},
    {"BOOL", 8, {}},
    {"F8_E4M3", 8, DType::kF8E4M3},
    {"F8_E5M2", 8, {}},
    {"F8_E8M0", 8, {}},
    {"F8_E4M3FNUZ", 8, {}},
    {"F8_E5M2FNUZ", 8, {}},
    {"F6_E2M3", 6, {}},
    {"F6_E3M2", 6, {}},
    {"F4", 4, {}},
    {"C64", 64, {}},
};

Error bad(const std::string& file, std::string_view tensor, const std::string& what) {
  return make_error(ErrorCode::kModel, "{}: tensor '{}': {}", file, shown(tensor), what);
}

std::optional<uint64_t> as_size(const json::value& v) {
  if (v.is_int64() && v.get_int64() >= 0) return static_cast<uint64_t>(v.get_int64());
  return {};
}

// The extent that dtype and shape ask for; none when it overflows or is no whole number of bytes.
std::optional<uint64_t> expected_bytes(const SafetensorsType& type, const std::vector<int64_t>& shape) {
  uint64_t bits = static_cast<uint64_t>(type.bits);
  for (const int64_t n : shape)
    if (__builtin_mul_overflow(bits, static_cast<uint64_t>(n), &bits)) return {};
  return bits % 8 == 0 ? std::optional(bits / 8) : std::nullopt;
}

// data_offsets becomes an extent of the file; `start` is where the data starts.
Result<void> read_extent(const std::string& file, const json::object& o, uint64_t start, uint64_t size,
                         SafetensorsEntry& e) {
  const json::value* offsets = o.if_contains("data_offsets");
  std::optional<uint64_t> begin, end;
  if (offsets != nullptr && offsets->is_array() && offsets->get_array().size() == 2) {
    begin = as_size(offsets->get_array()[0]);
    end = as_size(offsets->get_array()[1]);
  }
  if (!begin || !end || *begin > *end) return bad(file, e.name, "data_offsets is not a pair [begin, end]");
  if (*end > size)
    return bad(
        file, e.name,
        fmt::format(
            "truncated or damaged: the data ends at byte {}, but the file has {} bytes of data; get the "
            "file again",
            *end, size));
  e.offset = start + *begin;
  e.bytes = *end - *begin;
  return {};
}

Result<SafetensorsEntry> read_entry(const std::string& file, std::string_view name, const json::value& value,
                                    uint64_t start, uint64_t size) {
  SafetensorsEntry e;
  e.name = name;
  if (!value.is_object()) return bad(file, name, "expected an object with dtype, shape and data_offsets");
  const json::object& o = value.get_object();
  const json::value* dtype = o.if_contains("dtype");
  const json::value* shape = o.if_contains("shape");
  if (dtype == nullptr || !dtype->is_string()) return bad(file, name, "dtype is missing or no string");
  if (shape == nullptr || !shape->is_array() || shape->get_array().size() > kMaxRank)
    return bad(file, name, fmt::format("shape is missing or no list of at most {} sizes", kMaxRank));
  for (const json::value& n : shape->get_array()) {
    const std::optional<uint64_t> dim = as_size(n);
    if (!dim) return bad(file, name, "shape holds something that is no size");
    e.shape.push_back(static_cast<int64_t>(*dim));
  }
  e.dtype_name = shown(std::string_view(dtype->get_string().data(), dtype->get_string().size()));
  const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                  [&](const SafetensorsType& t) { return t.name == e.dtype_name; });
  if (type == std::end(kTypes))
    return bad(file, name, fmt::format("unknown dtype '{}', expected F32, F16 or BF16", e.dtype_name));
  e.dtype = type->dtype;
  DI_TRY(read_extent(file, o, start, size, e));
  const std::optional<uint64_t> expected = expected_bytes(*type, e.shape);
  if (expected != e.bytes)
    return bad(
        file, name,
        fmt::format("{} bytes of data, but {} [{}] takes {}", e.bytes, e.dtype_name, fmt::join(e.shape, ", "),
                    expected ? std::to_string(*expected) : "more than a file can hold"));
  return e;
}

Result<void> check_layout(const std::string& file, uint64_t start, uint64_t end,
                          const std::vector<SafetensorsEntry>& entries) {
  std::vector<const SafetensorsEntry*> order;
  for (const SafetensorsEntry& e : entries) order.push_back(&e);
  std::sort(order.begin(), order.end(), [](const SafetensorsEntry* a, const SafetensorsEntry* b) {
    return a->offset != b->offset ? a->offset < b->offset : a->bytes < b->bytes;
  });
  uint64_t expected = start;
  for (const SafetensorsEntry* e : order) {
    if (e->offset != expected)
      return bad(file, e->name,
                 fmt::format("starts at byte {}, expected {} ({}): the file is damaged", e->offset, expected,
                             e->offset < expected ? "it overlaps the tensor before it"
                                                  : "there is a hole before it"));
    expected += e->bytes;
  }
  if (expected != end)
    return make_error(ErrorCode::kModel,
                      "{}: {} bytes belong to no tensor, expected none: the file is damaged", file,
                      end - expected);
  return {};
}

size_t alignment_of(DType dtype) {
  return static_cast<size_t>(info(dtype).block_bytes);  // without blocks: of one element
}

// Adds one tensor of a mapped file; a misaligned one is copied, so that it can be read as what it is.
Result<void> add_tensor(const MappedFile& file, const SafetensorsEntry& e, Weights& out) {
  const std::string short_name = file.path().filename().string();
  if (!e.dtype) {
    out.unsupported.emplace(e.name, fmt::format("{}: dtype {} is not supported", short_name, e.dtype_name));
    return {};
  }
  RawTensor raw{*e.dtype, e.shape, file.bytes().data() + e.offset, e.bytes,
                fmt::format("{}: {}", short_name, shown(e.name))};
  if (reinterpret_cast<uintptr_t>(raw.data) % alignment_of(*e.dtype) != 0 && e.bytes != 0) {
    DI_ASSIGN(Buffer copy, Buffer::allocate(e.bytes));
    std::memcpy(copy.data(), raw.data, e.bytes);
    raw.data = copy.data();
    out.copies.push_back(std::move(copy));
  }
  out.tensors.emplace(e.name, std::move(raw));
  return {};
}

Result<Weights> open_single(const fs::path& path) {
  Weights out;
  DI_ASSIGN(MappedFile file, MappedFile::open(path));
  DI_ASSIGN(const std::vector<SafetensorsEntry> entries, parse_safetensors(file.bytes(), path.string()));
  for (const SafetensorsEntry& e : entries) DI_TRY(add_tensor(file, e, out));
  out.files.push_back(std::move(file));
  return out;
}

// A file of the same folder: an index must not lead elsewhere.
bool is_plain_name(std::string_view name) {
  return !name.empty() && name.size() <= 255 &&
         name.find_first_of(std::string_view("/\\\0", 3)) == name.npos && name.front() != '.' &&
         name.ends_with(".safetensors");
}

using ShardMap = std::map<std::string, std::vector<std::string>>;  // file -> tensors

Result<ShardMap> read_index(const fs::path& path) {
  const std::string name = path.string();
  DI_ASSIGN(const std::string text, read_file(path, kMaxIndex));
  DI_ASSIGN(const json::value value, parse_json(text, name));
  const json::value* map = value.is_object() ? value.get_object().if_contains("weight_map") : nullptr;
  if (map == nullptr || !map->is_object() || map->get_object().empty())
    return make_error(ErrorCode::kModel, "{}: expected an object weight_map of tensor names to files", name);
  ShardMap shards;
  for (const auto& [tensor, file] : map->get_object()) {
    const std::string file_name = file.is_string() ? std::string(file.get_string()) : std::string();
    if (!is_plain_name(file_name))
      return make_error(
          ErrorCode::kModel,
          "{}: weight_map['{}'] is '{}', expected the plain name of a .safetensors file in this folder", name,
          shown(std::string_view(tensor.data(), tensor.size())), shown(file_name));
    shards[file_name].emplace_back(tensor);
  }
  return shards;
}

Result<void> add_shard(const fs::path& path, const std::vector<std::string>& names, Weights& out) {
  auto opened = MappedFile::open(path);
  if (!opened && opened.error().code == ErrorCode::kNotFound)
    return make_error(
        ErrorCode::kModel,
        "{}: the shard is missing, but model.safetensors.index.json puts {} tensors there; finish the "
        "download",
        path.string(), names.size());
  DI_ASSIGN(MappedFile file, std::move(opened));
  DI_ASSIGN(const std::vector<SafetensorsEntry> entries, parse_safetensors(file.bytes(), path.string()));
  std::map<std::string_view, const SafetensorsEntry*> by_name;
  for (const SafetensorsEntry& e : entries) by_name.emplace(e.name, &e);
  for (const std::string& name : names) {
    const auto it = by_name.find(name);
    if (it == by_name.end())
      return bad(path.string(), name,
                 "is not in this shard, where model.safetensors.index.json puts it; get both files again");
    DI_TRY(add_tensor(file, *it->second, out));
  }
  out.files.push_back(std::move(file));
  return {};
}

}  // namespace

Result<std::vector<SafetensorsEntry>> parse_safetensors(std::span<const std::byte> file,
                                                        const std::string& name) {
  uint64_t header = 0;
  if (file.size() < sizeof header)
    return make_error(ErrorCode::kModel, "{}: truncated: {} bytes, expected at least 8; get the file again",
                      name, file.size());
  std::memcpy(&header, file.data(), sizeof header);
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + sizeof header,
                              file.size() - sizeof header);
  if (header > kMaxHeader || text.empty() || text.front() != '{')
    return make_error(ErrorCode::kModel, "{}: not a safetensors file; it looks like {}", name,
                      looks_like(file));
  if (header > text.size())
    return make_error(ErrorCode::kModel,
                      "{}: truncated: the header has {} bytes, but only {} follow; get the file again", name,
                      header, text.size());
  DI_ASSIGN(const json::value value, parse_json(text.substr(0, header), name + ": header"));
  if (!value.is_object()) return make_error(ErrorCode::kModel, "{}: the header is no JSON object", name);
  const uint64_t start = sizeof header + header;
  std::vector<SafetensorsEntry> entries;
  for (const auto& [key, item] : value.get_object()) {
    const std::string_view tensor(key.data(), key.size());
    if (tensor == "__metadata__") continue;
    DI_ASSIGN(SafetensorsEntry e, read_entry(name, tensor, item, start, file.size() - start));
    entries.push_back(std::move(e));
  }
  DI_TRY(check_layout(name, start, file.size(), entries));
  return entries;
}

Result<Weights> open_safetensors(const fs::path& folder) {
  std::error_code ec;
  const fs::path single = folder / "model.safetensors";
  if (fs::exists(single, ec)) return open_single(single);
  const fs::path index = folder / "model.safetensors.index.json";
  if (!fs::exists(index, ec)) {
    const bool pickle = fs::exists(folder / "pytorch_model.bin", ec) ||
                        fs::exists(folder / "pytorch_model.bin.index.json", ec);
    return make_error(
        ErrorCode::kModel, "{}: no weights: expected model.safetensors or model.safetensors.index.json{}",
        folder.string(),
        pickle ? "; pytorch_model.bin is a pickle, which can run code and is not read: convert it to "
                 "safetensors"
               : "");
  }
  DI_ASSIGN(const ShardMap shards, read_index(index));
  Weights out;
  for (const auto& [file, names] : shards) DI_TRY(add_shard(folder / file, names, out));
  return out;
}

}  // namespace deepinfer
