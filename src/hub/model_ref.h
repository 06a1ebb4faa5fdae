// Names: a model on a hub, a file in its repository, a revision, a quantization.
#pragma once

#include <string>
#include <string_view>

#include "deepinfer/result.h"

namespace deepinfer::hub {

// ORG/NAME or ORG/NAME:FILE.
struct ModelRef {
  std::string repo;  // "ORG/NAME"
  std::string file;  // a file's name or a quantization ("Q4_K_M"); empty: what the repository has

  std::string text() const { return file.empty() ? repo : repo + ":" + file; }
};

// kNotFound: what is wrong with the name, what was expected.
Result<ModelRef> parse_model_ref(std::string_view text);

// A name from a server that will be a path below a folder: relative, no "..", no control characters, at most
// 255 bytes a part and 1,024 in all. `what` begins the message. kModel.
Result<void> check_relative_path(std::string_view path, std::string_view what);

// A commit (40 hexadecimal digits), a hash that a file can be checked against (40: git's of a blob; 64:
// SHA-256).
bool is_commit(std::string_view text);
bool is_blob_hash(std::string_view text);

// ETag: W/"abc" and "abc" both mean abc.
std::string plain_etag(std::string_view value);

// "Q4_K_M" of "model-q4_k_m.gguf", "UD-Q2_K_XL" of "x/y-UD-Q2_K_XL-00001-of-00002.gguf"; empty: none in it.
std::string quantization_of(std::string_view file);

// What the parts of a split GGUF file share: "y-Q8_0" of "y-Q8_0-00001-of-00002.gguf"; else the name itself.
std::string split_base(std::string_view file);

std::string lower(std::string_view text);
std::string upper(std::string_view text);

// For messages: at most `limit` bytes, control characters as '?'.
std::string printable(std::string_view text, size_t limit = 200);

// 1.2 GB, 45.0 MB, 312 B; powers of ten, as disks and hubs count.
std::string size_text(uint64_t bytes);

}  // namespace deepinfer::hub
