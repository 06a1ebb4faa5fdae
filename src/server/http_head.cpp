#include "server/http_head.h"

#include <algorithm>
#include <charconv>
#include <cstdint>

#include "base/check.h"

namespace deepinfer::server {
namespace {

bool is_token_char(unsigned char c) {
  constexpr std::string_view kPunctuation = "!#$%&'*+-.^_`|~";
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         kPunctuation.find(static_cast<char>(c)) != std::string_view::npos;
}

bool is_control(unsigned char c) {
  return (c < 0x20 && c != '\t') || c == 0x7f;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// Takes the next line off `rest`, without its CRLF.
std::string_view take_line(std::string_view& rest) {
  const size_t end = rest.find("\r\n");
  const std::string_view line = rest.substr(0, end);
  rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 2);
  return line;
}

struct Seen {
  int host = 0, length = 0, encoding = 0;
};

std::optional<HeadFault> check_length(std::string_view value) {
  uint64_t length = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), length);
  if (value.empty() || error != std::errc() || end != value.data() + value.size())
    return HeadFault{400, "Content-Length: expected one decimal number"};
  return std::nullopt;
}

std::optional<HeadFault> check_field(std::string_view line, Seen& seen) {
  if (line.front() == ' ' || line.front() == '\t')
    return HeadFault{400, "a header field is folded over two lines: write it on one"};
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos || colon == 0)
    return HeadFault{400, "a header line has no field name: expected 'Name: value'"};
  const std::string_view name = line.substr(0, colon);
  if (!std::all_of(name.begin(), name.end(), is_token_char))
    return HeadFault{400, "a header field's name holds a character that names cannot have"};
  const std::string_view value = trim(line.substr(colon + 1));
  if (std::any_of(value.begin(), value.end(), is_control))
    return HeadFault{400, "a header field's value holds a control character"};
  const std::string key = lower(name);
  if (key == "host") {
    ++seen.host;
  } else if (key == "content-length") {
    ++seen.length;
    return check_length(value);
  } else if (key == "transfer-encoding") {
    ++seen.encoding;
    if (lower(value) != "chunked") return HeadFault{501, "Transfer-Encoding: only 'chunked' is understood"};
  }
  return std::nullopt;
}

}  // namespace

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

std::optional<HeadFault> check_head_start(std::string_view bytes, size_t from) {
  if (!bytes.empty() && bytes.front() == 0x16)
    return HeadFault{400, "this port speaks plain HTTP, not TLS: use http:// in the address"};
  for (size_t i = from; i < bytes.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(bytes[i]);
    const bool after_cr = i > 0 && bytes[i - 1] == '\r';
    if (c == '\n' && !after_cr)
      return HeadFault{400, "a line of the request's head ends with LF alone: expected CRLF"};
    if (c != '\n' && after_cr)
      return HeadFault{400, "the request's head holds a CR that is not followed by LF"};
    if (is_control(c) && c != '\r' && c != '\n')
      return HeadFault{400, "the request's head holds a control character"};
  }
  return std::nullopt;
}

std::optional<HeadFault> check_head(std::string_view head) {
  if (auto fault = check_head_start(head)) return fault;
  std::string_view rest = head;
  const std::string_view request_line = take_line(rest);
  const bool http10 = request_line.ends_with(" HTTP/1.0");
  if (!http10 && !request_line.ends_with(" HTTP/1.1")) {
    const bool other_version = request_line.rfind(" HTTP/") != std::string_view::npos;
    return HeadFault{other_version ? 505 : 400, "expected a request line 'METHOD /path HTTP/1.1'"};
  }
  Seen seen;
  while (!rest.empty()) {
    const std::string_view line = take_line(rest);
    if (line.empty()) break;
    if (auto fault = check_field(line, seen)) return fault;
  }
  if (seen.host > 1) return HeadFault{400, "Host: given more than once"};
  if (seen.host == 0 && !http10) return HeadFault{400, "Host: missing, HTTP/1.1 needs it"};
  if (seen.length > 1) return HeadFault{400, "Content-Length: given more than once"};
  if (seen.encoding > 1) return HeadFault{400, "Transfer-Encoding: given more than once"};
  if (seen.encoding == 1 && (seen.length == 1 || http10))
    return HeadFault{400, "Transfer-Encoding: not together with Content-Length, and not in HTTP/1.0"};
  return std::nullopt;
}

std::string_view host_name(std::string_view host) {
  if (const size_t scheme = host.find("://"); scheme != std::string_view::npos)
    host.remove_prefix(scheme + 3);
  host = host.substr(0, host.find('/'));
  if (host.starts_with('[')) return host.substr(0, std::min(host.find(']'), host.size() - 1) + 1);
  return host.substr(0, host.find(':'));
}

bool is_loopback_host(std::string_view host) {
  const std::string name = lower(host_name(host));
  if (name == "localhost" || name == "[::1]" || name.ends_with(".localhost")) return true;
  // 127.x.y.z written in digits; "127.evil.example" is a name and not one of these.
  return name.starts_with("127.") &&
         std::all_of(name.begin(), name.end(), [](char c) { return c == '.' || (c >= '0' && c <= '9'); });
}

}  // namespace deepinfer::server
