// Splits of known models over known cards: what fits, which comes first, and how long steps take.
#include "engine/split.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "base/limits.h"
#include "device/known_gpus.h"
#include "model/quantization.h"
#include "model/random_checkpoint.h"
#include "model/shape.h"

namespace deepinfer {
namespace {

namespace json = boost::json;
using testing::Contains;
using testing::HasSubstr;
using testing::Not;

Checkpoint llama(int hidden, int layers, int heads, int kv_heads, int ffn) {
  const json::object config{{"architectures", {"LlamaForCausalLM"}},
                            {"hidden_size", hidden},
                            {"num_hidden_layers", layers},
                            {"num_attention_heads", heads},
                            {"num_key_value_heads", kv_heads},
                            {"intermediate_size", ffn},
                            {"vocab_size", 128256},
                            {"max_position_embeddings", 131072},
                            {"tie_word_embeddings", false},
                            {"torch_dtype", "bfloat16"}};
  Result<Checkpoint> c = planned_checkpoint(json::serialize(config), "/nowhere");
  EXPECT_TRUE(c.ok()) << (c.ok() ? "" : c.error().message);
  return std::move(*c);
}

Checkpoint llama8b() {
  return llama(4096, 32, 32, 8, 14336);
}
Checkpoint llama70b() {
  return llama(8192, 80, 64, 8, 28672);
}

std::vector<GpuInfo> cards(const std::string& name, int count) {
  const Result<KnownGpu> g = find_known_gpu(name);
  EXPECT_TRUE(g.ok()) << name;
  const GpuInfo gpu{.id = -1, .name = g->name, .total_bytes = g->bytes(), .capability = g->capability};
  return std::vector<GpuInfo>(static_cast<size_t>(count), gpu);
}

SplitMachine machine(const std::string& name, int count) {
  return {.gpus = cards(name, count)};
}

std::vector<SplitPlan> plans(const Checkpoint& checkpoint, const SplitMachine& m,
                             const SplitWish& wish = {}) {
  auto all = plan_splits({}, checkpoint, m, wish, {});
  EXPECT_TRUE(all.ok()) << (all.ok() ? "" : all.error().message);
  return all ? std::move(*all) : std::vector<SplitPlan>();
}

TEST(Split, Texts) {
  EXPECT_EQ(split_text({1, 1, 1}), "one device");
  EXPECT_EQ(split_text({2, 3, 4}), "TP 2, PP 3, DP 4");
  EXPECT_EQ(split_flags({2, 1, 1}), "--tensor-parallel-size 2");
  EXPECT_EQ(split_flags({1, 1, 1}), "");
}

// The guide's model on the guide's two cards.
TEST(Split, SeventyBillionOnTwo5090s) {
  Checkpoint model = llama70b();
  Config config;
  config.gpu.gpu_memory_utilization = 0.95;
  const auto gpus = cards("RTX 5090", 2);
  for (const char* quantization : {"none", "fp8"}) {
    ASSERT_TRUE(set_quantization(model, quantization).ok());
    const Result<Split> none = choose_split(config, model, gpus);
    ASSERT_FALSE(none.ok()) << quantization;
    EXPECT_EQ(none.error().code, ErrorCode::kMemory);
    const std::vector<std::string> fit = fitting_splits(config, model, gpus);
    ASSERT_EQ(fit.size(), 1u);
    EXPECT_THAT(fit[0], HasSubstr("--quantization int4 --tensor-parallel-size 2: "));
    EXPECT_EQ(model.weights.online, std::string(quantization) == "none" ? "" : quantization) << "as before";
  }
  ASSERT_TRUE(set_quantization(model, "int4").ok());
  const Result<Split> two = choose_split(config, model, gpus);
  ASSERT_TRUE(two.ok()) << two.error().message;
  EXPECT_EQ(*two, (Split{2, 1, 1}));
  // The whole model would fit one card of 48 GB: the least number counts.
  EXPECT_EQ(*choose_split(config, model, cards("RTX A6000", 4)), (Split{1, 1, 1}));
}

TEST(Split, AutoTakesTheLeastNumberOfCards) {
  const Config config;
  const Checkpoint big = llama70b(), small = llama8b();
  EXPECT_EQ(*choose_split(config, small, cards("H200", 8)), (Split{1, 1, 1}));
  EXPECT_EQ(*choose_split(config, big, cards("H100 80GB", 8)), (Split{2, 1, 1}));
  EXPECT_EQ(*choose_split(config, big, cards("A100 40GB", 8)), (Split{4, 1, 1}));
  EXPECT_EQ(*choose_split(config, big, cards("H100 80GB", 8), 4), (Split{2, 1, 4}));
  EXPECT_EQ(*choose_split(config, small, {}), (Split{1, 1, 1})) << "the CPU";
  const Result<Split> many = choose_split(config, small, cards("H200", 2), 3);
  ASSERT_FALSE(many.ok());
  EXPECT_THAT(many.error().message, HasSubstr("DP 3 takes 3 cards, but there are 2"));
  // Three cards cannot share 64 heads.
  EXPECT_FALSE(choose_split(config, big, cards("A100 80GB", 1)).ok());
  EXPECT_EQ(*choose_split(config, big, cards("A100 80GB", 3)), (Split{2, 1, 1}));
}

TEST(Split, ReplicasComeFirstWhereCardsCannotReadEachOther) {
  const Checkpoint model = llama8b();
  for (const char* card : {"RTX 5090", "RTX 4090"}) {
    const auto all = plans(model, machine(card, 4));
    EXPECT_EQ(all.front().split, (Split{1, 1, 4})) << card;
    EXPECT_TRUE(all.front().usable());
  }
  // What was probed stands above what is known by name.
  SplitMachine bridged = machine("RTX 5090", 2);
  EXPECT_FALSE(have_peer_access(bridged.gpus));
  for (int i = 0; i < 2; ++i) bridged.gpus[i].peers = std::vector<int>{1 - i};
  EXPECT_TRUE(have_peer_access(bridged.gpus));
  SplitMachine apart = machine("H200", 2);
  EXPECT_TRUE(have_peer_access(apart.gpus));
  apart.gpus[0].peers = apart.gpus[1].peers = std::vector<int>{};
  EXPECT_FALSE(have_peer_access(apart.gpus));
}

TEST(Split, AModelThatFitsNoCardIsShared) {
  const auto all = plans(llama70b(), machine("H100 80GB", 8));
  EXPECT_EQ(all.front().split, (Split{4, 1, 2})) << "two cards hold the weights, but hardly a cache";
  EXPECT_EQ(plans(llama8b(), machine("H200", 8)).front().split, (Split{1, 1, 8}))
      << "one card has room enough";
  // Every split uses the cards that it can, and the answer to one request comes soonest with all of them.
  const auto fastest = [&](auto rate) {
    return std::max_element(all.begin(), all.end(),
                            [&](const SplitPlan& a, const SplitPlan& b) {
                              return (a.usable() ? rate(*a.rates) : 0) < (b.usable() ? rate(*b.rates) : 0);
                            })
        ->split;
  };
  EXPECT_EQ(fastest([](const StepRates& r) { return r.stream_per_second; }), (Split{8, 1, 1}));
  for (const SplitPlan& p : all) {
    EXPECT_GT(p.split.tensor * p.split.pipeline, 8 - p.split.devices()) << split_text(p.split);
    EXPECT_EQ(p.memory.fits(), p.split.tensor * p.split.pipeline > 1) << split_text(p.split);
    EXPECT_EQ(p.unavailable.empty(), p.split.pipeline == 1) << "no pipelines on cards";
  }
}

TEST(Split, OrderOfThePlans) {
  for (const char* card : {"RTX 5090", "H100 80GB", "L40S", "A100 40GB"}) {
    const auto all = plans(llama8b(), machine(card, 4));
    bool usable = true;
    for (const SplitPlan& p : all) {
      EXPECT_LE(p.usable(), usable) << card << ": " << split_text(p.split);
      usable = p.usable();
    }
  }
}

TEST(Split, WishesAreKept) {
  const Checkpoint model = llama8b();
  for (const SplitPlan& p : plans(model, machine("H200", 8), {.tensor = 2})) {
    EXPECT_EQ(p.split.tensor, 2);
    EXPECT_EQ(p.split.data, 4 / p.split.pipeline);
  }
  const auto one = plans(model, machine("H200", 8), {2, 1, 2});
  ASSERT_EQ(one.size(), 1u);
  EXPECT_EQ(one[0].split, (Split{2, 1, 2}));
  const struct {
    SplitWish wish;
    const char* words;
  } wrong[] = {{{4, 1, 3}, "TP 4, DP 3 takes 12 cards, but there are 8"},
               {{3, 1, 1}, "got 3, expected on GPUs a divisor of the model's 32 heads"},
               {{1, 33, 1}, "PP 33 takes 33 cards"},
               {{16, 0, 0}, "TP 16 takes 16 cards"}};
  for (const auto& c : wrong) {
    const auto refused = plan_splits({}, model, machine("H200", 8), c.wish, {});
    ASSERT_FALSE(refused.ok()) << c.words;
    EXPECT_EQ(refused.error().code, ErrorCode::kConfig);
    EXPECT_THAT(refused.error().message, HasSubstr(c.words));
  }
  const auto layers = plan_splits({}, model, machine("H200", 40), {1, 33, 1}, {});
  ASSERT_FALSE(layers.ok());
  EXPECT_THAT(layers.error().message, HasSubstr("at most the model's 32 layers"));
}

TEST(Split, CardsOfSeveralKindsCountAsTheLeast) {
  SplitMachine mixed = machine("H200", 1);
  mixed.gpus.push_back(cards("RTX 4090", 1).front());
  const auto all = plans(llama8b(), mixed);
  EXPECT_EQ(all.front().memory.device, "NVIDIA GeForce RTX 4090");
  const auto unknown = plans(
      llama8b(),
      {.gpus = std::vector<GpuInfo>(2, GpuInfo{.id = -1, .name = "a GPU", .total_bytes = 48ull << 30})});
  EXPECT_FALSE(unknown.front().rates) << "nobody knows how fast it is";
  EXPECT_EQ(unknown.front().split, (Split{1, 1, 2}));
}

TEST(Split, MemoryOfStagesAndRanks) {
  const Checkpoint model = llama70b();
  const auto all = plans(model, machine("B200", 8));
  for (const SplitPlan& p : all) {
    const double whole = static_cast<double>(model.weight_bytes);
    const double ends = 2.0 * 2 * 128256 * 8192;  // embedding and head, which the first stage has
    const StageLayers stages = stage_layers(model.config, p.split.pipeline);
    const double layer = (whole - ends) / 80;
    const double expected = std::max(stages.first * layer + ends, stages.others * layer) / p.split.tensor;
    const int layers = std::max(stages.first, stages.others);
    EXPECT_NEAR(static_cast<double>(p.memory.weight_bytes) / expected, 1, 1e-3) << split_text(p.split);
    EXPECT_EQ(p.memory.kv_token_bytes, 4096 * layers / p.split.tensor) << split_text(p.split);
  }
  // Two of 8 KV heads cannot be halved: 16 ranks hold each twice.
  const auto sixteen = plans(model, machine("B200", 16), {16, 1, 1});
  EXPECT_EQ(sixteen.front().memory.kv_token_bytes, 327680 / 8);
}

// docs/performance/gpu.md predicts these by other means.
TEST(StepTime, AgreesWithThePredictionsForOneCard) {
  const struct {
    const char* card;
    const char* quantization;
    double step_ms, prompt_ms;  // 1 sequence at 1k; 1k tokens
  } cases[] = {{"H200", "none", 4.5, 27}, {"H200", "fp8", 2.7, 18}, {"RTX 5090", "fp8", 5.9, 60}};
  for (const auto& c : cases) {
    SCOPED_TRACE(std::string(c.card) + " " + c.quantization);
    Checkpoint model = llama8b();
    ASSERT_TRUE(set_quantization(model, c.quantization).ok());
    const auto all = plan_splits({}, model, machine(c.card, 1), {}, {.prompt = 1024, .answer = 2});
    ASSERT_TRUE(all.ok() && all->front().rates);
    EXPECT_NEAR(1000 / all->front().rates->stream_per_second / c.step_ms, 1, 0.25);
    EXPECT_NEAR(1000 * all->front().rates->first_token_seconds / c.prompt_ms, 1, 0.35);
  }
}

constexpr DeviceSpeed kDevice{.bytes_per_second = 1e12, .flop_per_second = 1e14};
constexpr LinkSpeed kFree{.bytes_per_second = 1e15, .seconds = 0};

TEST(StepTime, RanksStagesAndReplicasDivideTheWorkOfAPerfectMachine) {
  const ModelWork work = model_work(llama8b(), DType::kBF16, 2);
  const SplitSpeed speed{kDevice, kDevice, kFree};
  const Load load{.prompt = 1000, .answer = 100, .chunk = 1000, .batch = 64};
  const StepRates one = predict_rates(work, speed, {}, load);
  const StepRates ranks = predict_rates(work, speed, {4, 1, 1}, load);
  EXPECT_NEAR(ranks.stream_per_second / one.stream_per_second, 4, 0.05);
  EXPECT_NEAR(ranks.prefill_per_second / one.prefill_per_second, 4, 0.05);
  EXPECT_NEAR(one.first_token_seconds / ranks.first_token_seconds, 4, 0.05);
  const StepRates replicas = predict_rates(work, speed, {1, 1, 4}, load);
  EXPECT_DOUBLE_EQ(replicas.stream_per_second, one.stream_per_second) << "one answer has one replica";
  EXPECT_DOUBLE_EQ(replicas.decode_per_second, 4 * one.decode_per_second);
  const StepRates stages = predict_rates(work, speed, {1, 4, 1}, load);
  EXPECT_NEAR(stages.stream_per_second / one.stream_per_second, 1, 0.01) << "one token is in one stage";
  EXPECT_NEAR(stages.prefill_per_second / one.prefill_per_second, 4, 0.5) << "9 of 32 layers in one";
  EXPECT_GT(stages.decode_per_second, one.decode_per_second);
}

TEST(StepTime, ASlowLinkCostsEveryLayerTwice) {
  const ModelWork work = model_work(llama8b(), DType::kBF16, 2);
  const Load load{.prompt = 1000, .answer = 100, .chunk = 1000, .batch = 1};
  SplitSpeed speed{kDevice, kDevice, kFree};
  const double before = 1 / predict_rates(work, speed, {2, 1, 1}, load).stream_per_second;
  speed.link.seconds = 1e-5;
  const double after = 1 / predict_rates(work, speed, {2, 1, 1}, load).stream_per_second;
  // And of the embedding once; the logits are gathered.
  EXPECT_NEAR(after - before, (2 * 32 + 2) * 1e-5, 1e-6);
  const double alone = 1 / predict_rates(work, speed, {1, 1, 1}, load).stream_per_second;
  speed.link.seconds = 0;
  EXPECT_DOUBLE_EQ(1 / predict_rates(work, speed, {1, 1, 1}, load).stream_per_second, alone)
      << "nobody to ask";
}

TEST(StepTime, HeadsThatDoNotDivideLeaveTheLargestShare) {
  ModelWork work = model_work(llama8b(), DType::kF16, 4);
  work.shape.heads = 9;
  work.shape.kv_heads = 3;
  work.mlp_params = work.mlp_bytes = work.head_bytes = work.head_params = 0;
  const SplitSpeed speed{kDevice, kDevice, kFree};
  const Load load{.prompt = 1, .answer = 1, .chunk = 1, .batch = 1};
  const double one = 1 / predict_rates(work, speed, {}, load).stream_per_second;
  const double two = 1 / predict_rates(work, speed, {2, 1, 1}, load).stream_per_second;
  EXPECT_NEAR(two / one, 5.0 / 9, 0.01);
}

// A layer that is measured here, and what follows from it.
TEST(HostRates, OfASmallModel) {
  Result<Checkpoint> model = random_checkpoint("tiny", 1);
  ASSERT_TRUE(model.ok());
  const Result<HostRates> host = measure_host({}, *model, 2);
  ASSERT_TRUE(host.ok()) << host.error().message;
  for (const DeviceSpeed& s : {host->one, host->all, host->one_busy}) {
    EXPECT_GT(s.bytes_per_second, 1e6);
    EXPECT_GT(s.flop_per_second, 1e6);
    EXPECT_GE(s.layer_seconds, 0);
    EXPECT_GE(s.token_seconds, 0);
  }
  EXPECT_GT(host->link.seconds, 0);
  EXPECT_GT(host->link.bytes_per_second, 1e6);
  const DeviceSpeed whole = rank_speed(*host, 1, true), shared = rank_speed(*host, 4, true);
  EXPECT_DOUBLE_EQ(whole.flop_per_second, host->all.flop_per_second);
  EXPECT_DOUBLE_EQ(shared.flop_per_second, host->one_busy.flop_per_second / 2) << "two ranks take turns";
  SplitMachine cpu{.host = *host, .threads = 2, .memory_bytes = machine_limits().memory_bytes};
  const auto all = plans(*model, cpu);
  ASSERT_EQ(all.size(), 4u) << "one rank of two threads, TP, PP, DP";
  for (const SplitPlan& p : all) EXPECT_TRUE(p.memory.fits() && p.rates) << split_text(p.split);
}

TEST(HostRates, OfAModelThatIsNotHere) {
  Checkpoint model = llama(256, 4, 4, 2, 512);
  ASSERT_TRUE(set_quantization(model, "int4").ok());
  const Result<HostRates> host = measure_host({}, model, 1);
  ASSERT_TRUE(host.ok()) << host.error().message;
  EXPECT_GT(host->one.flop_per_second, 1e6);
}

}  // namespace
}  // namespace deepinfer
