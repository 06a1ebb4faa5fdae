#include "profile/summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <numeric>

namespace deepinfer {
namespace {

constexpr const char* kMatrices = "matrix products";
constexpr const char* kAttention = "attention";
constexpr const char* kSampling = "sampling";
constexpr const char* kRest = "rest of the model";
constexpr const char* kScheduling = "scheduling";
constexpr const char* kHost = "host";
constexpr const char* kIdle = "idle";

// Percent of the time from which on something is worth a sentence.
constexpr double kMuchIdle = 25, kMuchAttention = 30, kMuchMatrices = 50, kMuchSampling = 15, kMuchHost = 15;
constexpr double kFewFreeBlocks = 0.05;  // of all
constexpr double kFewRows = 8;           // of a step

// Seconds of the engine's thread.
struct HostTimes {
  explicit HostTimes(const ProfileData& data) : phases(data.phases) {
    model = of({Phase::kForward, Phase::kSampling});
    scheduling = of({Phase::kSchedule, Phase::kCommit});
    wait = of({Phase::kWait});
    const double parts = model + scheduling + wait + of({Phase::kRequests, Phase::kDeliver});
    // The first round of the loop may have begun before the recording.
    busy = std::min(data.seconds, std::max(of({Phase::kLoop}), parts));
    host = std::max(0.0, busy - model - scheduling - wait);
    idle = data.seconds - busy;
  }

  double of(std::initializer_list<Phase> which) const {
    return std::accumulate(which.begin(), which.end(), 0.0, [this](double sum, Phase p) {
      return sum + static_cast<double>(phases[static_cast<size_t>(p)].nanoseconds) * 1e-9;
    });
  }

  const std::array<PhaseTotals, kPhases>& phases;
  double model = 0, scheduling = 0, wait = 0, busy = 0, host = 0, idle = 0;
};

class Shares {
 public:
  Shares(ProfileSummary& out) : out_(out) {}

  void add(const char* name, double seconds) { out_.shares.push_back(make(name, seconds)); }
  void add_part(Phase phase, double seconds) { out_.parts.push_back(make(info(phase).name, seconds)); }

 private:
  ProfileShare make(const char* name, double seconds) const {
    seconds = std::max(0.0, seconds);
    return {name, seconds, out_.seconds > 0 ? 100 * seconds / out_.seconds : 0};
  }
  ProfileSummary& out_;
};

void share_host(const HostTimes& t, ProfileSummary& out) {
  Shares shares(out);
  const double matrices = t.of({Phase::kQkv, Phase::kProject, Phase::kGateUp, Phase::kHead});
  const double attention = t.of({Phase::kAttention}), sampling = t.of({Phase::kSample, Phase::kScore});
  shares.add(kMatrices, matrices);
  shares.add(kAttention, attention);
  shares.add(kSampling, sampling);
  shares.add(kRest, t.model - matrices - attention - sampling);
  shares.add(kScheduling, t.scheduling);
  shares.add(kHost, t.host + t.wait);
  shares.add(kIdle, t.idle);
  for (const Phase p : {Phase::kQkv, Phase::kProject, Phase::kGateUp, Phase::kHead})
    shares.add_part(p, t.of({p}));
}

// The engine's thread runs ahead of the GPU, so its time is not what a step costs: what counts is what the
// GPU did, and why it did nothing.
void share_device(const HostTimes& t, const DeviceTotals& device, ProfileSummary& out) {
  Shares shares(out);
  const auto of = [&](Work work) {
    return static_cast<double>(device.nanoseconds[static_cast<size_t>(work)]) * 1e-9;
  };
  const double rest = std::max(0.0, out.seconds - static_cast<double>(device.busy()) * 1e-9);
  const double idle = std::min(rest, t.idle);
  shares.add(kMatrices, of(Work::kMatrices));
  shares.add(kAttention, of(Work::kAttention));
  shares.add(kSampling, of(Work::kSampling));
  shares.add(kRest, of(Work::kRest));
  shares.add("copies", of(Work::kCopies));
  shares.add(kHost, rest - idle);
  shares.add(kIdle, idle);
  out.note = "shares are of the GPU's time; host: the GPU waited for the engine";
}

void share_unseen(const HostTimes& t, const std::string& why, ProfileSummary& out) {
  Shares shares(out);
  shares.add("launches", t.model);
  shares.add("waiting for the GPU", t.wait);
  shares.add(kScheduling, t.scheduling);
  shares.add(kHost, t.host);
  shares.add(kIdle, t.idle);
  out.note = "what the GPU did is not known: " + why;
}

class Adviser {
 public:
  Adviser(ProfileSummary& out, const ProfileFacts& facts, const PhaseTotals& counters)
      : out_(out), facts_(facts) {
    const double n = static_cast<double>(std::max<int64_t>(counters.count, 1));
    running_ = static_cast<double>(counters.args[0]) / n;
    waiting_ = static_cast<double>(counters.args[1]) / n;
    free_ =
        facts.blocks > 0 ? static_cast<double>(counters.args[2]) / n / static_cast<double>(facts.blocks) : 1;
  }

  void advise() {
    if (out_.steps == 0)
      return say("No step ran: send requests between the start and the stop of the profile.");
    idle();
    queue();
    attention();
    matrices();
    sampling();
    host();
    if (out_.advice.empty())
      say("Nothing stands out: the time goes to the model. A smaller or more strongly quantized model, or a "
          "faster device, is what is left.");
  }

 private:
  void say(std::string sentence) { out_.advice.push_back(std::move(sentence)); }

  void idle() {
    const double percent = out_.percent(kIdle);
    if (percent < kMuchIdle) return;
    say(fmt::format(
        "Idle {:.0f}%: there was nothing to do. Send more requests at the same time: a step had {:.1f} "
        "rows, and gpu.max_num_seqs allows {}.",
        percent, out_.rows, facts_.max_num_seqs));
  }

  void queue() {
    if (waiting_ < 1) return;
    if (free_ < kFewFreeBlocks)
      say(fmt::format(
          "{:.1f} sequences waited on average and {:.0f}% of the KV cache's blocks were free: give it "
          "more memory ({}){}.",
          waiting_, 100 * free_, facts_.gpu ? "gpu.gpu_memory_utilization" : "gpu.kv_cache_memory_bytes",
          eight_bits() ? "" : ", or 8 bits (gpu.kv_cache_dtype: fp8)"));
    else if (running_ > 0.9 * facts_.max_num_seqs)
      say(fmt::format(
          "{:.1f} sequences waited on average while {:.1f} ran and {:.0f}% of the blocks were free: raise "
          "gpu.max_num_seqs ({}).",
          waiting_, running_, 100 * free_, facts_.max_num_seqs));
  }

  void attention() {
    const double percent = out_.percent(kAttention);
    if (percent < kMuchAttention) return;
    say(fmt::format(
        "Attention {:.0f}%: {}", percent,
        eight_bits() ? "the KV cache has 8 bits already; shorter prompts and answers are what is left."
        : facts_.gpu
            ? "long contexts are read again for every token. gpu.kv_cache_dtype: fp8 halves what is read."
            : "long contexts are read again for every token. gpu.kv_cache_dtype: int8 or fp8 halves what "
              "is read."));
  }

  void matrices() {
    const double percent = out_.percent(kMatrices);
    if (percent < kMuchMatrices) return;
    std::string what;
    if (out_.rows < kFewRows)
      what += fmt::format(
          " A step has {:.1f} rows: more requests at the same time share one reading of the weights.",
          out_.rows);
    if (!facts_.quantized) what += " model.quantization: fp8 or int4 makes the weights smaller.";
    if (what.empty()) what = " That is the model itself: a smaller one, or a faster device, is what is left.";
    say(fmt::format("Matrix products {:.0f}%:{}", percent, what));
  }

  void sampling() {
    const double percent = out_.percent(kSampling);
    if (percent < kMuchSampling) return;
    say(fmt::format(
        "Sampling {:.0f}%: temperature 0 is the cheapest; top_p without top_k, penalties, logprobs and "
        "llama.cpp's samplers look at the whole vocabulary.",
        percent));
  }

  void host() {
    const double percent = out_.percent(kHost) + out_.percent(kScheduling);
    if (percent < kMuchHost) return;
    say(fmt::format(
        "Host and scheduling {:.0f}%: {}", percent,
        facts_.gpu && !facts_.graphs
            ? "steps run without CUDA graphs; set gpu.enforce_eager to false."
            : "steps are too small for what surrounds them. More requests at the same time make them "
              "larger; a core that nobody else uses makes the engine's thread faster."));
  }

  bool eight_bits() const {
    return facts_.kv_dtype.find('8') != std::string::npos;  // f8_e4m3, i8, fp8
  }

  ProfileSummary& out_;
  const ProfileFacts& facts_;
  double running_ = 0, waiting_ = 0, free_ = 1;
};

boost::json::array array_of(const std::vector<ProfileShare>& shares) {
  boost::json::array out;
  for (const ProfileShare& s : shares)
    out.push_back({{"name", s.name}, {"seconds", s.seconds}, {"percent", s.percent}});
  return out;
}

}  // namespace

int64_t DeviceTotals::busy() const {
  return std::accumulate(nanoseconds.begin(), nanoseconds.end(), int64_t{0});
}

double ProfileSummary::percent(const std::string& name) const {
  for (const ProfileShare& s : shares)
    if (s.name == name) return s.percent;
  return 0;
}

ProfileSummary summarize(const ProfileData& data, const ProfileFacts& facts) {
  const PhaseTotals& steps = data.phases[static_cast<size_t>(Phase::kStep)];
  ProfileSummary out{.seconds = data.seconds, .steps = steps.count, .tokens = steps.args[2]};
  if (steps.count > 0) out.rows = static_cast<double>(steps.args[1]) / static_cast<double>(steps.count);
  const HostTimes times(data);
  if (!facts.gpu)
    share_host(times, out);
  else if (data.device)
    share_device(times, *data.device, out);
  else
    share_unseen(times, data.device_problem, out);
  Adviser(out, facts, data.phases[static_cast<size_t>(Phase::kCounters)]).advise();
  return out;
}

std::string to_text(const ProfileSummary& s) {
  std::string out = fmt::format("profile of {:.3f} s: {} steps, {} tokens, {:.1f} rows a step\n", s.seconds,
                                s.steps, s.tokens, s.rows);
  for (const ProfileShare& share : s.shares) {
    out += fmt::format("  {:<20} {:5.1f}% {:10.3f} s", share.name, share.percent, share.seconds);
    if (share.name == kMatrices && !s.parts.empty()) {
      std::string parts;
      for (const ProfileShare& p : s.parts)
        parts += fmt::format("{}{} {:.1f}%", parts.empty() ? "" : ", ", p.name, p.percent);
      out += fmt::format("  ({})", parts);
    }
    out += '\n';
  }
  if (!s.note.empty()) out += fmt::format("  ({})\n", s.note);
  out += "what to change:\n";
  for (const std::string& sentence : s.advice) out += fmt::format("  - {}\n", sentence);
  return out;
}

boost::json::object to_json(const ProfileSummary& s) {
  boost::json::array advice;
  for (const std::string& sentence : s.advice) advice.emplace_back(sentence);
  boost::json::value note(nullptr);
  if (!s.note.empty()) note = boost::json::string(s.note);
  return {{"seconds", s.seconds},         {"steps", s.steps},
          {"tokens", s.tokens},           {"rows_per_step", s.rows},
          {"shares", array_of(s.shares)}, {"matrix_products", array_of(s.parts)},
          {"note", std::move(note)},      {"advice", std::move(advice)}};
}

}  // namespace deepinfer
