#include "engine/step_wire.h"

#include <algorithm>

#include "base/check.h"
#include "engine/drafting.h"

namespace deepinfer {
namespace {

int32_t low(uint64_t n) {
  return static_cast<int32_t>(n & 0xffffffffu);
}

int32_t size_of(size_t n) {
  DI_CHECK(n <= INT32_MAX, "{} numbers of a step", n);
  return static_cast<int32_t>(n);
}

}  // namespace

// id (2 words), rows, copies; each row: slot, context_len, tokens whose logits are wanted, targets, tokens
// (how many, and they), for each group its blocks (how many, and they); each copy: src, dst.
std::span<const int32_t> StepEncoder::encode(const Step& step, const SlotTable& slots) {
  out_.clear();
  const auto put = [&](auto... n) { (out_.push_back(n), ...); };
  put(low(step.id), low(step.id >> 32), size_of(step.rows.size()), size_of(step.copies.size()));
  for (const StepRow& row : step.rows) {
    put(row.slot, row.context_len, row.samples ? 1 + row.drafts : 0, size_of(row.targets.size()),
        size_of(row.tokens.size()));
    for (const int32_t token : row.tokens)
      put(token == kTokenFromSlot ? slots.last_token.as<int32_t>()[row.slot] : token);
    for (const std::vector<int32_t>& table : row.block_table) {
      put(size_of(table.size()));
      out_.insert(out_.end(), table.begin(), table.end());
    }
  }
  for (const BlockCopy& copy : step.copies) put(copy.src, copy.dst);
  return out_;
}

// Takes numbers from the front; the first one that does not fit is remembered, what comes behind it is 0.
class StepDecoder::Reader {
 public:
  explicit Reader(std::span<const int32_t> in) : in_(in) {}

  int32_t number(const char* what, int64_t least, int64_t most) {
    if (at_ >= in_.size()) return wrong(what, "the end");
    const int32_t n = in_[at_++];
    if (n < least || n > most) return wrong(what, fmt::format("{}, expected {} to {}", n, least, most));
    return n;
  }
  // How many numbers follow; they are there.
  size_t count(const char* what) {
    return static_cast<size_t>(number(what, 0, std::ssize(in_) - size_t_at()));
  }
  std::span<const int32_t> numbers(size_t n, const char* what, int64_t least, int64_t most) {
    const size_t begin = at_;
    for (size_t i = 0; i < n; ++i) number(what, least, most);
    return error_.empty() ? in_.subspan(begin, n) : std::span<const int32_t>();
  }
  void expect_end() {
    if (error_.empty() && at_ != in_.size())
      wrong("the end", fmt::format("{} more numbers", in_.size() - at_));
  }
  const std::string& error() const { return error_; }

 private:
  int64_t size_t_at() const { return static_cast<int64_t>(at_); }
  int32_t wrong(const char* what, const std::string& got) {
    if (error_.empty()) error_ = fmt::format("number {}: {}: got {}", at_, what, got);
    at_ = in_.size();
    return 0;
  }

  std::span<const int32_t> in_;
  size_t at_ = 0;
  std::string error_;
};

Result<void> StepDecoder::read_row(Reader& in, size_t index) {
  StepRow& row = step_.rows[index];
  row = {};
  row.slot = in.number("slot", 0, limits_.slots - 1);
  row.context_len = in.number("context length", 0, limits_.max_model_len);
  const int32_t sampled = in.number("sampled tokens", 0, 1 + kMostDrafts);
  row.samples = sampled > 0;
  row.drafts = std::max(sampled - 1, 0);
  const size_t targets = in.count("targets");
  const size_t tokens = in.count("tokens");
  row.tokens = in.numbers(tokens, "token", 0, limits_.vocab - 1);
  if (targets > row.tokens.size())
    return make_error(ErrorCode::kInternal, "a step: {} targets of {} tokens", targets, row.tokens.size());
  if (static_cast<size_t>(sampled) > row.tokens.size())
    return make_error(ErrorCode::kInternal, "a step: {} of {} tokens are sampled", sampled,
                      row.tokens.size());
  row.targets = row.tokens.first(targets);  // only how many there are matters here
  std::vector<std::vector<int32_t>>& tables = tables_[index];
  tables.resize(limits_.groups);
  for (std::vector<int32_t>& table : tables) {
    const size_t blocks = in.count("blocks");
    const auto ids = in.numbers(blocks, "block", -1, limits_.blocks - 1);
    table.assign(ids.begin(), ids.end());
  }
  row.block_table = tables;
  return {};
}

Result<const Step*> StepDecoder::decode(std::span<const int32_t> numbers) {
  Reader in(numbers);
  const auto word = [&] { return uint64_t{static_cast<uint32_t>(in.number("id", INT32_MIN, INT32_MAX))}; };
  step_.id = word();
  step_.id |= word() << 32;
  step_.rows.resize(static_cast<size_t>(in.number("rows", 0, limits_.slots)));
  step_.copies.resize(in.count("copies"));
  tables_.resize(std::max(tables_.size(), step_.rows.size()));
  for (size_t i = 0; i < step_.rows.size(); ++i) DI_TRY(read_row(in, i));
  for (BlockCopy& copy : step_.copies) {
    copy.src = in.number("copied block", 0, limits_.blocks - 1);
    copy.dst = in.number("copied block", 0, limits_.blocks - 1);
  }
  in.expect_end();
  if (!in.error().empty())
    return make_error(ErrorCode::kInternal, "a step that cannot be read: {}", in.error());
  return &step_;
}

}  // namespace deepinfer
