#include "cli/split_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "device/known_gpus.h"

namespace deepinfer {
namespace {

namespace json = boost::json;

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

std::string figure(double value) {
  return value < 10 ? fmt::format("{:.2f}", value) : fmt::format("{:.0f}", value);
}

std::string line_of(const SplitPlan& p) {
  const Estimate& m = p.memory;
  std::string out = fmt::format("{:<18} {:>7} {:>10.2f} ", split_text(p.split), p.split.devices(),
                                static_cast<double>(m.weight_bytes) / kGiB);
  if (!m.fits()) return out + "  does not fit\n";
  out += fmt::format("{:>10} ", p.split.data * m.tokens());
  if (p.rates)
    out += fmt::format("{:>6} {:>8.3f} {:>8} {:>9} {:>9} {:>8}", p.batch * p.split.data,
                       p.rates->first_token_seconds, figure(p.rates->stream_per_second),
                       figure(p.rates->prefill_per_second), figure(p.rates->decode_per_second),
                       figure(p.rates->requests_per_second));
  return out + (p.unavailable.empty() ? "" : "  not served") + "\n";
}

}  // namespace

std::string split_table(const std::vector<SplitPlan>& plans, const Load& load, size_t most) {
  const bool cpu = !plans.empty() && plans.front().memory.device == "CPU";
  std::string out = fmt::format(
      "splits, the best first; rates for prompts of {} tokens and answers of {}\n"
      "{:<18} {:>7} {:>10} {:>10} {:>6} {:>8} {:>8} {:>9} {:>9} {:>8}\n",
      load.prompt, load.answer, "", cpu ? "ranks" : "cards", "GiB each", "KV tokens", "seqs", "TTFT s",
      "1 stream", "prefill/s", "decode/s", "req/s");
  const size_t shown = std::min(most, plans.size());
  for (size_t i = 0; i < shown; ++i) out += line_of(plans[i]);
  if (shown < plans.size()) out += fmt::format("and {} more: --json has all\n", plans.size() - shown);
  return out;
}

std::string split_notes(const std::vector<SplitPlan>& plans, const SplitMachine& machine) {
  std::string out;
  const auto refused = std::find_if(plans.begin(), plans.end(), [](const SplitPlan& p) {
    return !p.unavailable.empty() && p.memory.fits();
  });
  if (refused != plans.end()) out += fmt::format("Not served: {}.\n", refused->unavailable);
  if (machine.gpus.empty())
    return out + (machine.host
                      ? "Predicted from layers that were measured here; ranks are groups of threads.\n"
                      : "");
  if (machine.gpus.size() > 1 && !have_peer_access(machine.gpus)) {
    out += "These cards do not read each other's memory: what they exchange goes through the host";
    const bool whole = std::any_of(plans.begin(), plans.end(),
                                   [](const SplitPlan& p) { return p.usable() && p.split.tensor == 1; });
    out += whole ? ", so whole replicas (DP) come before shared layers (TP).\n" : ".\n";
  }
  if (std::none_of(plans.begin(), plans.end(), [](const SplitPlan& p) { return p.memory.fits(); }))
    return out;
  const bool rates =
      std::any_of(plans.begin(), plans.end(), [](const SplitPlan& p) { return p.rates.has_value(); });
  out += rates ? "Predicted from data sheets; no card was measured.\n"
               : "How fast these cards are is not known: the order goes by what fits on the fewest.\n";
  return out;
}

json::array splits_json(const std::vector<SplitPlan>& plans) {
  json::array out;
  for (const SplitPlan& p : plans) {
    json::object o{{"split", split_text(p.split)},
                   {"tensor_parallel_size", p.split.tensor},
                   {"pipeline_parallel_size", p.split.pipeline},
                   {"data_parallel_size", p.split.data},
                   {"devices", p.split.devices()},
                   {"fits", p.memory.fits()},
                   {"served", p.usable()},
                   {"weight_bytes", p.memory.weight_bytes},
                   {"kv_tokens", p.split.data * p.memory.tokens()},
                   {"max_model_len", p.memory.max_model_len}};
    if (!p.unavailable.empty()) o["unavailable"] = p.unavailable;
    if (p.rates) {
      o["sequences"] = p.batch * p.split.data;
      o["first_token_seconds"] = p.rates->first_token_seconds;
      o["stream_tokens_per_second"] = p.rates->stream_per_second;
      o["prefill_tokens_per_second"] = p.rates->prefill_per_second;
      o["decode_tokens_per_second"] = p.rates->decode_per_second;
      o["requests_per_second"] = p.rates->requests_per_second;
    }
    out.push_back(std::move(o));
  }
  return out;
}

}  // namespace deepinfer
