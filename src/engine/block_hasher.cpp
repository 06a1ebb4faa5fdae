#include <openssl/evp.h>

#include "base/check.h"
#include "engine/block_pool.h"

namespace deepinfer {

struct BlockHasher::State {
  std::unique_ptr<EVP_MD, decltype(&EVP_MD_free)> sha256{EVP_MD_fetch(nullptr, "SHA256", nullptr),
                                                         EVP_MD_free};
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context{EVP_MD_CTX_new(), EVP_MD_CTX_free};

  BlockKey hash(const void* a, size_t a_bytes, const void* b, size_t b_bytes) {
    BlockKey key;
    bool ok = EVP_DigestInit_ex2(context.get(), sha256.get(), nullptr) == 1 &&
              EVP_DigestUpdate(context.get(), a, a_bytes) == 1 &&
              EVP_DigestUpdate(context.get(), b, b_bytes) == 1 &&
              EVP_DigestFinal_ex(context.get(), key.data(), nullptr) == 1;
    DI_CHECK(ok, "OpenSSL refused to compute a SHA-256");
    return key;
  }
};

BlockHasher::BlockHasher() : state_(std::make_unique<State>()) {
  DI_CHECK(state_->sha256 && state_->context, "OpenSSL has no SHA-256");
}

BlockHasher::~BlockHasher() = default;

BlockKey BlockHasher::root(std::string_view extra) {
  static constexpr std::string_view kDomain = "deepinfer kv root:";
  return state_->hash(kDomain.data(), kDomain.size(), extra.data(), extra.size());
}

BlockKey BlockHasher::next(const BlockKey& parent, std::span<const int32_t> tokens) {
  return state_->hash(parent.data(), parent.size(), tokens.data(), tokens.size_bytes());
}

}  // namespace deepinfer
