#include "hub/repo_info.h"

#include <boost/json.hpp>
#include <set>

#include "base/check.h"
#include "hub/model_ref.h"

namespace deepinfer::hub {
namespace {

namespace json = boost::json;

constexpr uint64_t kMaxFile = uint64_t{1} << 46;
constexpr size_t kMaxFiles = 100'000;

Result<json::object> parse_object(std::string_view text, const std::string& where) {
  boost::system::error_code error;
  json::parse_options options;
  options.max_depth = 64;
  json::value value = json::parse({text.data(), text.size()}, error, {}, options);
  if (error || !value.is_object())
    return make_error(ErrorCode::kModel, "{}: expected a JSON object, got '{}'{}", where,
                      printable(text.substr(0, 80)), error ? ": " + error.message() : "");
  return std::move(value.as_object());
}

std::string string_of(const json::object& object, std::string_view key) {
  const json::value* v = object.if_contains({key.data(), key.size()});
  return v != nullptr && v->is_string() ? std::string(v->get_string()) : "";
}

// Nothing when it is absent; an error when it is no size.
Result<uint64_t> size_of(const json::object& object, const std::string& where) {
  const json::value* v = object.if_contains("size");
  if (v == nullptr || v->is_null()) return uint64_t{0};
  boost::system::error_code error;
  const auto size = v->to_number<uint64_t>(error);
  if (error || size > kMaxFile)
    return make_error(ErrorCode::kModel, "{}: size: got {}, expected 0 to {}", where,
                      printable(json::serialize(*v)), kMaxFile);
  return size;
}

Result<RemoteFile> read_file(const json::value& item, const std::string& where) {
  if (!item.is_object()) return make_error(ErrorCode::kModel, "{}: an entry is no object", where);
  const json::object& o = item.get_object();
  RemoteFile file{string_of(o, "rfilename"), "", 0};
  DI_TRY(check_relative_path(file.name, where + ": a file"));
  const std::string place = fmt::format("{}: {}", where, file.name);
  const json::value* lfs = o.if_contains("lfs");
  if (lfs != nullptr && lfs->is_object()) {
    const json::object& l = lfs->get_object();
    file.etag = string_of(l, "sha256");
    if (file.etag.empty()) file.etag = string_of(l, "oid");
    DI_ASSIGN(file.size, size_of(l, place));
    if (!l.contains("size") || file.etag.size() != 64) file.etag.clear();
  } else {
    file.etag = string_of(o, "blobId");
    DI_ASSIGN(file.size, size_of(o, place));
    if (!o.contains("size") || file.etag.size() != 40) file.etag.clear();
  }
  // What is unclear here is asked for file by file.
  if (!is_blob_hash(file.etag)) file.etag.clear();
  if (file.etag.empty()) file.size = 0;
  return file;
}

}  // namespace

Result<RepoInfo> parse_repo_info(std::string_view text, const std::string& where) {
  DI_ASSIGN(const json::object root, parse_object(text, where));
  RepoInfo info{string_of(root, "sha"), {}};
  if (!is_commit(info.commit))
    return make_error(ErrorCode::kModel, "{}: sha: got '{}', expected a commit of 40 hexadecimal digits",
                      where, printable(info.commit));
  const json::value* siblings = root.if_contains("siblings");
  if (siblings == nullptr || !siblings->is_array() || siblings->get_array().size() > kMaxFiles)
    return make_error(ErrorCode::kModel, "{}: siblings: expected a list of at most {} files", where,
                      kMaxFiles);
  std::set<std::string> seen;
  for (const json::value& item : siblings->get_array()) {
    DI_ASSIGN(RemoteFile file, read_file(item, where));
    if (!seen.insert(file.name).second)
      return make_error(ErrorCode::kModel, "{}: {} comes twice", where, printable(file.name));
    info.files.push_back(std::move(file));
  }
  return info;
}

Result<std::vector<std::string>> shards_of_index(std::string_view text, const std::string& where) {
  DI_ASSIGN(const json::object root, parse_object(text, where));
  const json::value* map = root.if_contains("weight_map");
  if (map == nullptr || !map->is_object())
    return make_error(ErrorCode::kModel, "{}: weight_map: expected an object", where);
  std::set<std::string> names;
  for (const auto& [tensor, file] : map->get_object()) {
    if (!file.is_string())
      return make_error(ErrorCode::kModel, "{}: weight_map: {} is no string", where,
                        printable({tensor.data(), tensor.size()}));
    names.emplace(file.get_string());
  }
  for (const std::string& name : names) DI_TRY(check_relative_path(name, where + ": a file"));
  return std::vector<std::string>(names.begin(), names.end());
}

std::string weights_text(std::string_view config_json) {
  const std::string plain = "safetensors";
  Result<json::object> root = parse_object(config_json, "config.json");
  if (!root) return plain;
  std::string type = string_of(*root, "dtype");
  if (type.empty()) type = string_of(*root, "torch_dtype");
  const json::value* quantization = root->if_contains("quantization_config");
  if (quantization != nullptr && quantization->is_object())
    if (const std::string method = string_of(quantization->get_object(), "quant_method"); !method.empty())
      type = method;
  return type.empty() ? plain : plain + " " + printable(type, 24);
}

}  // namespace deepinfer::hub
