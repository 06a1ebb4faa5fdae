// Faults of the kind that a device's code could have, planted in what the device gets: each must go beyond
// the bound that the right device keeps.
#include <cstring>

#include "emulation/model_fixture.h"

namespace deepinfer::test {
namespace {

// A copy of a tensor's bytes, to be spoiled.
std::byte* own_copy(Checkpoint& c, const std::string& name) {
  RawTensor& t = c.weights.tensors.at(name);
  Result<Buffer> memory = Buffer::allocate(t.bytes);
  DI_CHECK(memory.ok(), "{}", memory.error().message);
  std::memcpy(memory->data(), t.data, t.bytes);
  t.data = memory->data();
  c.weights.copies.push_back(std::move(*memory));
  return c.weights.copies.back().data();
}

// Of one group of 32 weights, in the second layer: doubled, as its exponent were off by one.
void wrong_scale(Checkpoint& c) {
  std::byte* block = own_copy(c, "model.layers.1.mlp.down_proj.weight");
  uint16_t scale;
  std::memcpy(&scale, block, 2);
  scale += 1 << 10;
  std::memcpy(block, &scale, 2);
}

void missing_bias(Checkpoint& c) {
  const std::string name = "model.layers.1.self_attn.k_proj.bias";
  std::memset(own_copy(c, name), 0, c.weights.tensors.at(name).bytes);
}

void ignored_rope_scaling(Checkpoint& c) {
  c.config.rope_scaling = {};
}

// F32 weights cut off to BF16, where they should be rounded.
void truncated_weights(Checkpoint& c) {
  for (const auto& [name, t] : c.weights.tensors) {
    if (t.shape.size() != 2) continue;
    std::byte* bytes = own_copy(c, name);
    for (size_t i = 0; i < t.bytes; i += 4) std::memset(bytes + i, 0, 2);
  }
}

void wrong_epsilon(Checkpoint& c) {
  c.config.norm_eps *= 1000;
}

struct Fault {
  std::string name, model;
  DType activation;
  void (*plant)(Checkpoint&);
  int wrong_token = -1;  // of the first sequence: one key and value of another token
};

class ModelFault : public testing::TestWithParam<Fault> {};

TEST_P(ModelFault, IsBeyondTheBound) {
  const Fault& f = GetParam();
  const Scene s{.model = f.model, .activation = f.activation, .kv = f.activation, .damage = f.plant};
  const auto runner = make_runner(s);
  const auto exact = exact_model(s);
  ASSERT_TRUE(runner && exact);
  Feeder feeder(*runner, 2, 48, 7);
  std::vector<int32_t> right = feeder.ids[0];
  if (f.wrong_token >= 0) feeder.ids[0][f.wrong_token] = (right[f.wrong_token] + 1) % exact->vocab_size();
  RowComparison rows(*exact, {right, feeder.ids[1]});
  for (const auto& counts : std::vector<std::vector<int>>{{19, 0}, {1, 33}, {1, 1}, {1, 1}, {1, 1}, {1, 1}})
    for (const auto& [i, logits] : feeder.step(counts)) rows.add(i, feeder.at[i], logits);
  EXPECT_GT(rows.worst(), rows.most()) << rows.describe();
  std::printf("%s\n", rows.describe().c_str());
}

INSTANTIATE_TEST_SUITE_P(
    Planted, ModelFault,
    testing::Values(Fault{"WrongScaleBF16", "base/model-q4_1.gguf", DType::kBF16, wrong_scale},
                    Fault{"WrongScaleF16", "base/model-q4_1.gguf", DType::kF16, wrong_scale},
                    Fault{"MissingBiasBF16", "biases", DType::kBF16, missing_bias},
                    Fault{"MissingBiasF16", "biases", DType::kF16, missing_bias},
                    Fault{"IgnoredRopeScaling", "llama3_rope", DType::kBF16, ignored_rope_scaling},
                    Fault{"TruncatedWeights", "biases", DType::kBF16, truncated_weights},
                    Fault{"WrongEpsilonBF16", "base", DType::kBF16, wrong_epsilon},
                    Fault{"WrongEpsilonF16", "base", DType::kF16, wrong_epsilon},
                    Fault{"WrongKeyAndValue", "base", DType::kBF16, nullptr, 4}),
    [](const auto& i) { return i.param.name; });

}  // namespace
}  // namespace deepinfer::test
