// Writes GGUF files for tests, right or wrong ones.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/gguf.h"

namespace deepinfer {

template <class T>
void put(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof value);
  out.append(bytes, sizeof bytes);
}

inline void put_text(std::string& out, std::string_view text) {
  put<uint64_t>(out, text.size());
  out += text;
}

class GgufBuilder {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;
  std::string magic = "GGUF";
  std::vector<uint64_t> forced_tensor_count, forced_key_count;  // empty: the true ones

  // A value that is already encoded.
  GgufBuilder& raw(std::string_view key, uint32_t type, std::string_view value) {
    put_text(metadata_, key);
    put(metadata_, type);
    metadata_ += value;
    ++keys_;
    return *this;
  }
  template <class T>
  GgufBuilder& number(std::string_view key, GgufType type, T value) {
    std::string bytes;
    put(bytes, value);
    return raw(key, static_cast<uint32_t>(type), bytes);
  }
  GgufBuilder& u32(std::string_view key, uint32_t value) { return number(key, GgufType::kU32, value); }
  GgufBuilder& f32(std::string_view key, float value) { return number(key, GgufType::kF32, value); }
  GgufBuilder& text(std::string_view key, std::string_view value) {
    std::string bytes;
    put_text(bytes, value);
    return raw(key, static_cast<uint32_t>(GgufType::kString), bytes);
  }
  GgufBuilder& texts(std::string_view key, const std::vector<std::string>& values) {
    std::string bytes;
    put(bytes, static_cast<uint32_t>(GgufType::kString));
    put<uint64_t>(bytes, values.size());
    for (const std::string& v : values) put_text(bytes, v);
    return raw(key, static_cast<uint32_t>(GgufType::kArray), bytes);
  }
  template <class T>
  GgufBuilder& numbers(std::string_view key, GgufType type, const std::vector<T>& values) {
    std::string bytes;
    put(bytes, static_cast<uint32_t>(type));
    put<uint64_t>(bytes, values.size());
    for (const T v : values) put(bytes, v);
    return raw(key, static_cast<uint32_t>(GgufType::kArray), bytes);
  }

  struct TensorEntry {
    std::string name;
    uint32_t type = 0;
    std::vector<uint64_t> dims;  // innermost first, as in the file
    uint64_t bytes = 0;
    uint64_t offset = 0;
  };
  // `dims` innermost first; the data is a run of bytes 1, 2, 3 ...
  GgufBuilder& tensor(std::string_view name, uint32_t type, std::vector<uint64_t> dims, uint64_t bytes) {
    const uint64_t offset = (data_.size() + alignment - 1) / alignment * alignment;
    data_.resize(offset, '\0');
    for (uint64_t i = 0; i < bytes; ++i) data_ += static_cast<char>(1 + i % 100);
    tensors_.push_back({std::string(name), type, std::move(dims), bytes, offset});
    return *this;
  }
  TensorEntry& entry(size_t i) { return tensors_[i]; }

  std::string header() const {
    std::string out = magic;
    put(out, version);
    put<uint64_t>(out, forced_tensor_count.empty() ? tensors_.size() : forced_tensor_count[0]);
    put<uint64_t>(out, forced_key_count.empty() ? keys_ : forced_key_count[0]);
    out += metadata_;
    for (const TensorEntry& t : tensors_) {
      put_text(out, t.name);
      put<uint32_t>(out, static_cast<uint32_t>(t.dims.size()));
      for (const uint64_t d : t.dims) put(out, d);
      put(out, t.type);
      put(out, t.offset);
    }
    return out;
  }
  // Without padding behind the last tensor.
  std::string build() const {
    std::string out = header();
    if (!tensors_.empty()) out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
    return out + data_;
  }

 private:
  std::string metadata_, data_;
  uint64_t keys_ = 0;
  std::vector<TensorEntry> tensors_;
};

// A whole tiny llama: hidden 32, 1 layer, 2 heads, vocabulary of 4.
inline GgufBuilder tiny_gguf() {
  GgufBuilder b;
  b.text("general.architecture", "llama")
      .u32("llama.embedding_length", 32)
      .u32("llama.block_count", 1)
      .u32("llama.feed_forward_length", 64)
      .u32("llama.context_length", 128)
      .u32("llama.attention.head_count", 2)
      .u32("llama.attention.head_count_kv", 1)
      .f32("llama.attention.layer_norm_rms_epsilon", 1e-5f)
      .f32("llama.rope.freq_base", 5000.0f)
      .text("tokenizer.ggml.model", "gpt2")
      .text("tokenizer.ggml.pre", "gpt-2")
      .texts("tokenizer.ggml.tokens", {"a", "b", "ab", "<|im_end|>"})
      .numbers<int32_t>("tokenizer.ggml.token_type", GgufType::kI32, {1, 1, 1, 3})
      .texts("tokenizer.ggml.merges", {"a b"})
      .u32("tokenizer.ggml.eos_token_id", 3)
      .number<uint8_t>("tokenizer.ggml.add_bos_token", GgufType::kBool, 0);
  b.tensor("token_embd.weight", 8, {32, 4}, 4 * 34)
      .tensor("output_norm.weight", 0, {32}, 128)
      .tensor("blk.0.attn_q.weight", 3, {32, 32}, 32 * 20);
  return b;
}

}  // namespace deepinfer
