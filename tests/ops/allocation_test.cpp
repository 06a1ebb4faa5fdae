// A step allocates nothing: operator new is counted while operations run.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "fixture.h"
#include "layer.h"

namespace {

std::atomic<int64_t> allocations{0};

void* counted(size_t bytes) {
  ++allocations;
  if (void* p = std::malloc(bytes == 0 ? 1 : bytes)) return p;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(size_t bytes) {
  return counted(bytes);
}
void* operator new[](size_t bytes) {
  return counted(bytes);
}
void operator delete(void* p) noexcept {
  std::free(p);
}
void operator delete[](void* p) noexcept {
  std::free(p);
}
void operator delete(void* p, size_t) noexcept {
  std::free(p);
}
void operator delete[](void* p, size_t) noexcept {
  std::free(p);
}

namespace deepinfer::test {
namespace {

TEST(Allocation, OperationsAllocateNothing) {
  LayerShape s;
  s.weight = DType::kQ4_1;
  s.ffn = 64;
  Machine m(2);
  Layer layer(m.context, s, 1);
  Cache cache(s, 32);
  for (const int tokens : {1, 40, 300}) {
    std::vector<int32_t> blocks(20);
    for (int i = 0; i < 20; ++i) blocks[i] = i;
    Batch batch({{.context_len = tokens == 1 ? 299 : 0,
                  .tokens = std::vector<int32_t>(tokens, 0),
                  .blocks = {blocks}}});
    batch.logit_token = {tokens - 1};
    batch.step.logit_token = batch.logit_token;
    const int64_t t = tokens, width = int64_t{s.heads} * s.dim_k;
    std::vector<float> hidden = random_floats(layer.random, t * s.hidden), q(t * width), attended(t * width);
    std::vector<float> ffn(t * s.ffn), logits(Layer::kVocab), table(t * s.rotary);
    const Tensor h = tensor(hidden, {t, s.hidden}), rope = tensor(table, {t, s.rotary});
    const Norm norm{tensor(layer.norm, {s.hidden}), 1e-5f};
    const KvLayer kv = cache.layer();
    ops::project(m.context,
                 {.x = tensor(attended, {t, width}), .weight = &layer.o, .bias = {}, .residual = h});

    const int64_t before = allocations;
    ops::rope(m.context, {&batch.step, tensor(layer.inv_freq, {s.rotary / 2}), 1.0f, rope});
    ops::qkv(m.context, {.batch = &batch.step,
                         .hidden = h,
                         .norm = norm,
                         .weight = &layer.qkv,
                         .bias = {},
                         .rope = rope,
                         .kv = kv,
                         .heads = s.heads,
                         .q = tensor(q, {t, width})});
    ops::attention(m.context, {.batch = &batch.step,
                               .q = tensor(q, {t, width}),
                               .kv = kv,
                               .heads = s.heads,
                               .scale = 0.1f,
                               .out = tensor(attended, {t, width})});
    ops::project(m.context,
                 {.x = tensor(attended, {t, width}), .weight = &layer.o, .bias = {}, .residual = h});
    ops::gate_up(
        m.context,
        {.hidden = h, .norm = norm, .weight = &layer.gate_up, .bias = {}, .out = tensor(ffn, {t, s.ffn})});
    ops::project(m.context, {.x = tensor(ffn, {t, s.ffn}), .weight = &layer.down, .bias = {}, .residual = h});
    ops::head(m.context, {.batch = &batch.step,
                          .hidden = h,
                          .norm = norm,
                          .weight = &layer.head,
                          .logits = tensor(logits, {1, Layer::kVocab})});
    EXPECT_EQ(allocations - before, 0) << tokens << " tokens";
  }
}

}  // namespace
}  // namespace deepinfer::test
