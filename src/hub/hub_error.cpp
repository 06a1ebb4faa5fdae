#include "hub/hub_error.h"

#include <algorithm>
#include <cstdlib>

#include "base/check.h"
#include "hub/model_ref.h"

namespace deepinfer::hub {
namespace {

constexpr double kLongestWait = 60;

Error gated(const Settings& s, const Asked& asked, const std::string& said) {
  return make_error(ErrorCode::kModel,
                    "{}: access is restricted ({}): open {}/{} and accept its conditions, {}, then try again",
                    asked.repo, said, s.endpoint, asked.repo,
                    s.token.empty() ? std::string("set HF_TOKEN to a token of that account")
                                    : fmt::format("with the account whose token {} has", s.token_origin));
}

Error unauthorized(const Settings& s, const Asked& asked, const std::string& said) {
  if (s.token.empty())
    return make_error(
        ErrorCode::kModel,
        "{}: {} does not give it without a token ({}): either no such model exists, or it is private or "
        "gated; for those set HF_TOKEN to a token that may read it",
        asked.repo, s.endpoint, said);
  return make_error(
      ErrorCode::kModel,
      "{}: {} does not accept the token of {} ({}): either it is wrong or expired, or no such model "
      "exists; set HF_TOKEN to a token that may read it",
      asked.repo, s.endpoint, s.token_origin, said);
}

Error not_found(const Settings& s, const Asked& asked, const std::string& code) {
  if (!asked.file.empty() || code == "EntryNotFound")
    return make_error(ErrorCode::kNotFound, "{}: {} has no file {} at revision {}", asked.repo, s.endpoint,
                      asked.file, asked.revision);
  if (code == "RevisionNotFound")
    return make_error(ErrorCode::kNotFound,
                      "{}: {} has no revision '{}' of it: check model.revision (--revision)", asked.repo,
                      s.endpoint, asked.revision);
  return make_error(ErrorCode::kNotFound,
                    "{}: no such model at {} (revision {}); expected ORG/NAME as its page has it", asked.repo,
                    s.endpoint, asked.revision);
}

}  // namespace

bool may_work_later(int status) {
  return status == 408 || status == 429 || status >= 500;
}

double retry_after(const HttpHead& head) {
  const std::string text = head.header("retry-after");
  char* end = nullptr;
  const double seconds = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(seconds >= 0)) return -1;
  return std::min(seconds, kLongestWait);
}

Error status_error(const Settings& s, const Asked& asked, const HttpHead& head) {
  const std::string code = head.header("x-error-code");
  const std::string message = printable(head.header("x-error-message"));
  const std::string said =
      message.empty() ? std::to_string(head.status) : fmt::format("{}: {}", head.status, message);
  if (head.status == 403 || code == "GatedRepo") return gated(s, asked, said);
  if (head.status == 401) return unauthorized(s, asked, said);
  if (head.status == 404) return not_found(s, asked, code);
  return make_error(ErrorCode::kModel, "{}: {} answers {}", asked.repo, s.endpoint, said);
}

}  // namespace deepinfer::hub
