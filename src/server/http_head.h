// The rules of a request's head that Beast's parser leaves to its user. Plain functions of bytes: no socket.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace deepinfer::server {

struct HeadFault {
  int status = 400;     // 400, 408, 413, 431, 501, 505
  std::string message;  // what is wrong, for the client
};

// A fault as soon as these first bytes can never become a head that is accepted: a TLS greeting, a bare line
// feed, a control character. Saves waiting for the deadline. Bytes before `from` were looked at before.
std::optional<HeadFault> check_head_start(std::string_view bytes, size_t from = 0);

// `head` is the request line and the fields, up to and with the empty line. Refused: folded fields, an empty
// or odd field name, control characters, a missing or repeated Host (HTTP/1.1), Content-Length repeated, not
// a plain number or beside Transfer-Encoding, a Transfer-Encoding other than "chunked" or in HTTP/1.0.
std::optional<HeadFault> check_head(std::string_view head);

// Lower case, ASCII only.
std::string lower(std::string_view text);

// Whether a server bound to loopback answers for this Host: localhost, 127.x.y.z, [::1] with any port, or the
// host of one of `allowed` (hosts or origins). Keeps web pages of other names from reaching it (DNS
// rebinding).
bool is_loopback_host(std::string_view host);

// "host" of "host:port", "[v6]:port", "scheme://host:port".
std::string_view host_name(std::string_view host);

}  // namespace deepinfer::server
