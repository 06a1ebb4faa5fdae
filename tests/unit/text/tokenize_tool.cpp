// For tests against other tokenizers: reads texts from the standard input, each a line with its length in
// bytes and then the bytes; writes a line of ids for each. With --special the whole text is trusted, with
// --decode the input is lines of ids and the output is the text in hexadecimal digits. --time N: speed.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>

#include "base/check.h"
#include "base/mapped_file.h"
#include "model/gguf.h"
#include "model/gguf_model.h"
#include "text/tokenizer.h"

namespace {

using deepinfer::TextRange;
using deepinfer::Tokenizer;

deepinfer::Result<std::unique_ptr<Tokenizer>> load(const std::filesystem::path& path) {
  if (path.extension() != ".gguf") return deepinfer::load_tokenizer(path);
  DI_ASSIGN(const auto mapped, deepinfer::MappedFile::open(path));
  DI_ASSIGN(const auto file, deepinfer::parse_gguf(mapped.bytes(), path.string()));
  DI_ASSIGN(auto data, deepinfer::gguf_tokenizer(file, path.string()));
  return deepinfer::make_tokenizer(std::move(data));
}

int encode_all(const Tokenizer& tokenizer, bool special) {
  std::string line, text;
  while (std::getline(std::cin, line)) {
    text.resize(std::stoull(line));
    std::cin.read(text.data(), static_cast<std::streamsize>(text.size()));
    const TextRange all{0, text.size()};
    const auto ids = special ? tokenizer.encode(text, std::span(&all, 1)) : tokenizer.encode(text);
    std::string out;
    for (const int32_t id : ids) out.append(std::to_string(id)).append(" ");
    std::puts(out.c_str());
  }
  return 0;
}

int decode_all(const Tokenizer& tokenizer) {
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream ids(line);
    for (int32_t id = 0; ids >> id;)
      for (const char byte : tokenizer.bytes(id)) std::printf("%02x", static_cast<unsigned char>(byte));
    std::puts("");
  }
  return 0;
}

// Megabytes a second for texts of `chunk` bytes cut from the standard input: the best of five rounds.
int time_all(const Tokenizer& tokenizer, size_t chunk) {
  const std::string text{std::istreambuf_iterator<char>(std::cin), {}};
  double best = 0;
  size_t ids = 0;
  for (int round = 0; round < 5; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    ids = 0;
    for (size_t at = 0; at < text.size(); at += chunk)
      ids += tokenizer.encode(std::string_view(text).substr(at, chunk)).size();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    best = std::max(best, static_cast<double>(text.size()) / 1e6 / took.count());
  }
  std::printf("%.2f MB/s, %zu ids\n", best, ids);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fputs("usage: tokenize_tool FOLDER-OR-GGUF [--special | --decode | --info | --time CHUNK]\n",
               stderr);
    return 2;
  }
  const std::string mode = argc > 2 ? argv[2] : "";
  auto tokenizer = load(argv[1]);
  if (!tokenizer) {
    std::fprintf(stderr, "%s\n", tokenizer.error().message.c_str());
    return 3;
  }
  std::ios::sync_with_stdio(false);
  if (mode == "--decode") return decode_all(**tokenizer);
  if (mode == "--time") return time_all(**tokenizer, argc > 3 ? std::stoull(argv[3]) : 1 << 20);
  if (mode != "--info") return encode_all(**tokenizer, mode == "--special");
  std::printf("vocabulary %d bos %d add_bos %d end", (*tokenizer)->vocab_size(),
              (*tokenizer)->bos().value_or(-1), (*tokenizer)->add_bos());
  for (const int32_t id : (*tokenizer)->end_ids()) std::printf(" %d", id);
  std::puts("");
  return 0;
}
