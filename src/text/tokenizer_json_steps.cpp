// The normalizer and the pre-tokenizer of tokenizer.json.
#include <array>
#include <iterator>

#include "base/check.h"
#include "text/tokenizer_json.h"

namespace deepinfer {
namespace {

constexpr int kMostSteps = 64;

Error unknown_type(const JsonFields& object, std::string_view type, std::string_view known) {
  return make_error(ErrorCode::kModel, "{}: got the type \"{}\", known are: {}", object.path(), type, known);
}

// Calls `read` for the object or, when it is a Sequence, for each of its children, to any depth that the
// JSON parser allows.
template <class Read>
Result<void> for_each_step(const JsonFields& object, std::string_view children, const Read& read) {
  DI_ASSIGN(const std::string_view type, object.required_string("type"));
  if (type != "Sequence") return read(object, type);
  DI_ASSIGN(const boost::json::array* list, object.array(children));
  if (!list) return make_error(ErrorCode::kModel, "{}: missing, expected a list", object.path_of(children));
  for (size_t i = 0; i < list->size(); ++i) {
    DI_ASSIGN(const JsonFields child,
              JsonFields::of((*list)[i], fmt::format("{}[{}]", object.path_of(children), i)));
    DI_TRY(for_each_step(child, children, read));
  }
  return {};
}

// {"String": "x"} or {"Regex": "x"}
struct Pattern {
  std::string_view text;
  bool regex = false;
};

Result<Pattern> read_pattern(const JsonFields& owner) {
  DI_ASSIGN(const auto object, owner.object("pattern"));
  if (object) {
    DI_ASSIGN(const auto regex, object->string("Regex"));
    if (regex) return Pattern{*regex, true};
    DI_ASSIGN(const auto text, object->string("String"));
    if (text) return Pattern{*text, false};
  }
  return make_error(ErrorCode::kModel, "{}: expected an object with \"String\" or \"Regex\"",
                    owner.path_of("pattern"));
}

Result<SplitBehavior> read_behavior(const JsonFields& owner) {
  struct Name {
    std::string_view name;
    SplitBehavior behavior;
  };
  static constexpr std::array kNames = {
      Name{"Removed", SplitBehavior::kRemoved},
      Name{"Isolated", SplitBehavior::kIsolated},
      Name{"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      Name{"MergedWithNext", SplitBehavior::kMergedWithNext},
      Name{"Contiguous", SplitBehavior::kContiguous},
  };
  DI_ASSIGN(const std::string_view name, owner.required_string("behavior"));
  for (const Name& known : kNames)
    if (known.name == name) return known.behavior;
  return make_error(
      ErrorCode::kModel,
      "{}: got \"{}\", known are: Removed Isolated MergedWithPrevious MergedWithNext Contiguous",
      owner.path_of("behavior"), name);
}

Result<PreTokenizerStep> read_split(const JsonFields& object) {
  DI_ASSIGN(const Pattern pattern, read_pattern(object));
  DI_ASSIGN(const SplitBehavior behavior, read_behavior(object));
  DI_ASSIGN(const bool invert, object.boolean("invert", false));
  if (!pattern.regex) return PreTokenizerStep(SplitStep{std::string(pattern.text), behavior, invert});
  // The scanners' matches cover the whole text, so what is not a match is nothing: isolated either way. Only
  // the digits leave gaps.
  const std::optional<ScanPattern> scan = known_regex(pattern.text);
  const bool covers_all = scan && *scan != ScanPattern::kDigits;
  if (scan && behavior == SplitBehavior::kIsolated && (covers_all || !invert)) return PreTokenizerStep(*scan);
  if (covers_all && behavior == SplitBehavior::kRemoved && invert) return PreTokenizerStep(*scan);
  auto regex = SplitRegex::compile(pattern.text);
  if (!regex)
    return make_error(ErrorCode::kModel, "{}: {}", object.path_of("pattern"), regex.error().message);
  return PreTokenizerStep(SplitStep{std::move(regex).value(), behavior, invert});
}

class PreTokenizerReader {
 public:
  Result<void> step(const JsonFields& object, std::string_view type) {
    if (steps_.size() >= kMostSteps)
      return make_error(ErrorCode::kModel, "{}: got more than {} steps", object.path(), kMostSteps);
    if (byte_level_)
      return make_error(ErrorCode::kModel, "{}: expected nothing behind ByteLevel, got {}", object.path(),
                        type);
    if (type == "Split") {
      DI_ASSIGN(PreTokenizerStep split, read_split(object));
      steps_.push_back(std::move(split));
    } else if (type == "Digits") {
      DI_ASSIGN(const bool individual, object.boolean("individual_digits", false));
      steps_.emplace_back(individual ? ScanPattern::kDigits : ScanPattern::kDigitGroups);
    } else if (type == "ByteLevel") {
      DI_ASSIGN(const bool prefix_space, object.boolean("add_prefix_space", true));
      DI_ASSIGN(const bool use_regex, object.boolean("use_regex", true));
      if (prefix_space) steps_.emplace_back(PrefixSpaceStep{});
      if (use_regex) steps_.emplace_back(ScanPattern::kGpt2);
      byte_level_ = true;
    } else {
      return unknown_type(object, type, "ByteLevel Digits Sequence Split");
    }
    return {};
  }

  Result<PreTokenizer> finish(const JsonFields& object) {
    if (!byte_level_)
      return make_error(ErrorCode::kModel, "{}: got no ByteLevel, known is byte-level BPE only",
                        object.path());
    return PreTokenizer(std::move(steps_));
  }

 private:
  std::vector<PreTokenizerStep> steps_;
  bool byte_level_ = false;
};

Result<NormalizerStep> read_normalizer_step(const JsonFields& object, std::string_view type) {
  if (type == "NFC") return NormalizerStep(UnicodeForm::kNfc);
  if (type == "NFD") return NormalizerStep(UnicodeForm::kNfd);
  if (type == "NFKC") return NormalizerStep(UnicodeForm::kNfkc);
  if (type == "NFKD") return NormalizerStep(UnicodeForm::kNfkd);
  if (type != "Replace") return unknown_type(object, type, "NFC NFD NFKC NFKD Replace Sequence");
  DI_ASSIGN(const Pattern pattern, read_pattern(object));
  DI_ASSIGN(const std::string_view content, object.required_string("content"));
  if (pattern.regex || pattern.text.empty())
    return make_error(ErrorCode::kModel, "{}: expected a \"String\" that is not empty",
                      object.path_of("pattern"));
  return NormalizerStep(ReplaceStep{std::string(pattern.text), std::string(content)});
}

}  // namespace

Result<Normalizer> read_normalizer(const JsonFields& document) {
  DI_ASSIGN(const auto object, document.object("normalizer"));
  std::vector<NormalizerStep> steps;
  if (!object) return Normalizer();
  DI_TRY(for_each_step(
      *object, "normalizers", [&](const JsonFields& child, std::string_view type) -> Result<void> {
        if (steps.size() >= kMostSteps)
          return make_error(ErrorCode::kModel, "{}: got more than {} steps", child.path(), kMostSteps);
        DI_ASSIGN(NormalizerStep step, read_normalizer_step(child, type));
        steps.push_back(std::move(step));
        return {};
      }));
  return Normalizer(std::move(steps));
}

Result<PreTokenizer> read_pre_tokenizer(const JsonFields& document) {
  DI_ASSIGN(const auto object, document.object("pre_tokenizer"));
  if (!object)
    return make_error(ErrorCode::kModel, "pre_tokenizer: got none, known is byte-level BPE only (ByteLevel)");
  PreTokenizerReader reader;
  DI_TRY(for_each_step(*object, "pretokenizers", [&](const JsonFields& child, std::string_view type) {
    return reader.step(child, type);
  }));
  return reader.finish(*object);
}

}  // namespace deepinfer
