#include "fake_llm.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <stdexcept>
#include <thread>

#include "base/check.h"
#include "engine/model_runner.h"
#include "text/byte_alphabet.h"

namespace deepinfer::server {

void Gate::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
}

void Gate::open() {
  const std::lock_guard lock(mutex_);
  closed_ = false;
  changed_.notify_all();
}

void Gate::pass() {
  std::unique_lock lock(mutex_);
  ++waiting_;
  changed_.notify_all();
  changed_.wait(lock, [this] { return !closed_; });
  --waiting_;
}

void Gate::wait_for_step() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return closed_ && waiting_ > 0; });
}

namespace {

class SpeakingRunner final : public ModelRunner {
 public:
  SpeakingRunner(FakeModel model, Gate* gate) : model_(std::move(model)), gate_(gate) {
    info_.groups.push_back({});
    info_.num_blocks = model_.num_blocks;
    info_.num_slots = model_.max_num_seqs;
    info_.vocab_size = 258;
    info_.max_model_len = model_.max_model_len;
  }

  const Info& info() const override { return info_; }
  void launch_forward(const Step& step) override {
    if (gate_) gate_->pass();
    for (const StepRow& row : step.rows)
      if (row.samples && row.sampling.position == model_.fails_at)
        throw std::runtime_error("/secret/model.gguf at 0xdeadbeef");
    std::this_thread::sleep_for(model_.step_time);
  }

  void launch_sample(const Step& step) override {
    output_.accepted.clear();
    output_.scored.clear();
    for (const StepRow& row : step.rows) {
      if (!row.targets.empty()) output_.scored.push_back(score(row));
      if (!row.samples) continue;
      const int64_t first = first_position_.try_emplace(row.sequence, row.sampling.position).first->second;
      output_.accepted.push_back({sample(row.sampling, static_cast<size_t>(row.sampling.position - first))});
    }
  }

  StepOutput wait(uint64_t) override { return std::move(output_); }

 private:
  // Of a prompt: each token has the log-probability of its place in the row, and the next letters beside it.
  static std::vector<OutputToken> score(const StepRow& row) {
    std::vector<OutputToken> tokens;
    for (const int32_t target : row.targets) {
      OutputToken& t = tokens.emplace_back();
      t = {.id = target, .rank = 2, .logprob = -1.0f - static_cast<float>(tokens.size() - 1)};
      for (int32_t k = 0; k < row.target_top; ++k) t.top.push_back({'a' + k, -0.25f - static_cast<float>(k)});
    }
    return tokens;
  }

  OutputToken sample(const SampleRow& row, size_t index) const {
    OutputToken token;
    token.id = index < model_.says.size() ? static_cast<unsigned char>(model_.says[index]) : kFakeEnd;
    if (std::find(row.banned.begin(), row.banned.end(), token.id) != row.banned.end()) token.id = '.';
    if (row.logprobs < 0) return token;
    token.logprob = -0.5f;
    // The last of them is impossible.
    for (int k = 0; k < row.logprobs; ++k)
      token.top.push_back({k == 0 ? token.id : 'a' + k, k + 1 == row.logprobs && k > 0
                                                            ? -std::numeric_limits<float>::infinity()
                                                            : -0.5f - static_cast<float>(k)});
    return token;
  }

  FakeModel model_;
  Gate* gate_;
  Info info_;
  std::map<uint64_t, int64_t> first_position_;  // by sequence, so that preemption repeats nothing
  StepOutput output_;
};

std::unique_ptr<Tokenizer> byte_tokenizer() {
  TokenizerData data;
  data.model = "gpt2";
  data.pre = "gpt2";
  for (int byte = 0; byte < 256; ++byte) {
    data.tokens.push_back(bytes_to_alphabet(std::string(1, static_cast<char>(byte))));
    data.kinds.push_back(TokenizerData::Kind::kNormal);
  }
  for (const char* name : {"<|im_start|>", "<|im_end|>"}) {
    data.tokens.emplace_back(name);
    data.kinds.push_back(TokenizerData::Kind::kControl);
  }
  data.eos = kFakeEnd;
  data.add_bos = false;
  auto tokenizer = make_tokenizer(std::move(data));
  DI_CHECK(tokenizer.ok(), "{}", tokenizer.error().message);
  return std::move(*tokenizer);
}

}  // namespace

std::unique_ptr<Llm> make_fake_llm(const Config& config, FakeModel model, Gate* gate) {
  auto llm = std::make_unique<Llm>();
  llm->names = config.model.served_model_name.empty() ? std::vector<std::string>{"fake", "other-name"}
                                                      : config.model.served_model_name;
  llm->max_model_len = model.max_model_len;
  llm->fingerprint = "fp_fake";
  llm->tokenizer = byte_tokenizer();
  auto chat_template = ChatTemplate::parse(
      "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
      "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}");
  DI_CHECK(chat_template.ok(), "{}", chat_template.error().message);
  llm->chat_template = std::make_unique<ChatTemplate>(std::move(*chat_template));
  EngineOptions options;
  options.max_queue = model.max_queue;
  options.queue_timeout = config.server.queue_timeout;
  options.timeout = config.server.timeout;
  options.end_ids = {kFakeEnd};
  options.event_log = config.server.event_log;
  llm->engine = std::make_unique<Engine>(std::make_unique<SpeakingRunner>(std::move(model), gate), options);
  return llm;
}

}  // namespace deepinfer::server
