#include "model/sniff.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace deepinfer {
namespace {

bool starts_with_ignoring_case(std::string_view text, std::string_view lower) {
  if (text.size() < lower.size()) return false;
  return std::equal(lower.begin(), lower.end(), text.begin(),
                    [](char a, char b) { return a == std::tolower(static_cast<unsigned char>(b)); });
}

bool is_safetensors(std::string_view text) {
  if (text.size() < 9) return false;
  uint64_t header = 0;
  std::memcpy(&header, text.data(), sizeof header);
  return header >= 2 && header <= 100'000'000 && text[8] == '{';
}

struct Signature {
  std::string_view start;
  const char* meaning;
};

}  // namespace

std::string looks_like(std::span<const std::byte> file) {
  const std::string_view text(reinterpret_cast<const char*>(file.data()),
                              std::min<size_t>(file.size(), 4096));
  static constexpr Signature kSignatures[] = {
      {"GGUF", "a GGUF file"},
      {"version https://git-lfs",
       "a Git LFS pointer: the real file was not downloaded; run 'git lfs pull' in its repository"},
      {"PK\x03\x04",
       "a zip archive or a PyTorch checkpoint (.bin, .pt): such files can run code and are not read; convert "
       "it to safetensors"},
      {"\x80\x02",
       "a Python pickle (PyTorch): such files can run code and are not read; convert it to safetensors"},
      {"\x80\x04",
       "a Python pickle (PyTorch): such files can run code and are not read; convert it to safetensors"},
      {"tjgg", "an old GGML file (ggjt): convert the model to GGUF again"},
      {"lmgg", "an old GGML file: convert the model to GGUF again"},
      {"fmgg", "an old GGML file (ggmf): convert the model to GGUF again"},
      {"\x1f\x8b", "a gzip archive: unpack it first"},
      {"\x89HDF", "an HDF5 file"},
      {"\x7f"
       "ELF",
       "a program"},
  };
  for (const Signature& s : kSignatures)
    if (text.starts_with(s.start)) return s.meaning;
  const size_t first = std::min(text.find_first_not_of(" \t\r\n"), text.size());
  const std::string_view body = text.substr(first);
  if (starts_with_ignoring_case(body, "<!doctype html") || starts_with_ignoring_case(body, "<html"))
    return "an HTML page: the download gave an error or a login page instead of the file";
  if (is_safetensors(text)) return "a safetensors file: pass the folder that holds it and config.json";
  if (body.starts_with("{")) return "a JSON file: pass the folder, not its config.json";
  if (!text.empty() && text.find_first_not_of('\0') == std::string_view::npos)
    return "zero bytes: a download that was not finished";
  return "an unknown format";
}

}  // namespace deepinfer
