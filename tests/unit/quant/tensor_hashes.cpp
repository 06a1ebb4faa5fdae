// tensor_hashes FILE.gguf: "NAME SHA256" of every tensor's values as the oracles dequantize them, for
// tools/golden/dequantize.py --compare.
#include <openssl/evp.h>

#include <cstdio>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "model/gguf.h"
#include "quant/formats.h"

using namespace deepinfer;

namespace {

std::string hash(const GgufTensor& t, const std::byte* data) {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  EVP_DigestInit_ex(context, EVP_sha256(), nullptr);
  const int64_t cols = t.shape.back();
  const int64_t row = row_bytes(t.dtype, cols);
  std::vector<float> values(cols);
  for (uint64_t at = 0; at < t.bytes; at += row) {
    find_format(t.dtype)->dequantize(data + at, cols, values.data());
    EVP_DigestUpdate(context, values.data(), values.size() * sizeof(float));
  }
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_DigestFinal_ex(context, digest, &size);
  EVP_MD_CTX_free(context);
  std::string hex;
  for (unsigned int i = 0; i < size; ++i) {
    char two[3];
    std::snprintf(two, sizeof two, "%02x", digest[i]);
    hex += two;
  }
  return hex;
}

int run(const char* path) {
  const auto mapped = MappedFile::open(path);
  if (!mapped) return std::fprintf(stderr, "%s\n", mapped.error().message.c_str()), 1;
  const auto file = parse_gguf(mapped->bytes(), path);
  if (!file) return std::fprintf(stderr, "%s\n", file.error().message.c_str()), 1;
  for (const GgufTensor& t : file->tensors) {
    if (find_format(t.dtype) == nullptr) continue;
    std::printf("%.*s %s\n", static_cast<int>(t.name.size()), t.name.data(),
                hash(t, mapped->bytes().data() + t.offset).c_str());
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "usage: tensor_hashes FILE.gguf\n"), 2;
  return run(argv[1]);
}
