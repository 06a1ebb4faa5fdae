#include "server/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/error.hpp>
#include <cerrno>
#include <climits>
#include <fstream>

#include "base/check.h"
#include "base/log.h"
#include "server/secret_file.h"

namespace deepinfer::server {

namespace asio = boost::asio;
using boost::system::error_code;

namespace {

std::string openssl_reason() {
  const unsigned long code = ERR_peek_last_error();
  const char* reason = code ? ERR_reason_error_string(code) : nullptr;
  ERR_clear_error();
  return reason ? reason : "unknown reason";
}

// `*data` tells that a password was wanted. -1: there is none.
int no_password(char*, int, int, void* data) {
  *static_cast<bool*>(data) = true;
  return -1;
}

Result<void> use_key(SSL_CTX* context, const std::string& path) {
  bool encrypted = false;
  SSL_CTX_set_default_passwd_cb(context, no_password);
  SSL_CTX_set_default_passwd_cb_userdata(context, &encrypted);
  const bool good = SSL_CTX_use_PrivateKey_file(context, path.c_str(), SSL_FILETYPE_PEM) == 1;
  SSL_CTX_set_default_passwd_cb_userdata(context, nullptr);
  SSL_CTX_set_default_passwd_cb(context, nullptr);
  if (good) return {};
  if (encrypted)
    return make_error(
        ErrorCode::kConfig,
        "server.ssl_keyfile: {} is encrypted, and there is nobody to type its password; expected "
        "a key without one (openssl pkey -in {} -out plain.pem)",
        path, path);
  const unsigned long code = ERR_peek_last_error();
  if (ERR_GET_LIB(code) == ERR_LIB_X509 && ERR_GET_REASON(code) == X509_R_KEY_VALUES_MISMATCH) {
    ERR_clear_error();
    return make_error(ErrorCode::kConfig,
                      "server.ssl_keyfile: {} is not the key of the certificate in server.ssl_certfile",
                      path);
  }
  return make_error(ErrorCode::kConfig, "server.ssl_keyfile: {} holds no private key in PEM form ({})", path,
                    openssl_reason());
}

void warn_about_dates(X509* certificate, const std::string& path) {
  if (X509_cmp_current_time(X509_get0_notAfter(certificate)) < 0)
    log::warn("server.ssl_certfile: the certificate in {} has expired: clients will refuse it", path);
  else if (X509_cmp_current_time(X509_get0_notBefore(certificate)) > 0)
    log::warn("server.ssl_certfile: the certificate in {} is not valid yet: clients will refuse it", path);
}

// OpenSSL's own socket BIO raises SIGPIPE when the client is gone.
int socket_write(BIO* bio, const char* bytes, int size) {
  BIO_clear_retry_flags(bio);
  const auto socket = static_cast<int>(reinterpret_cast<intptr_t>(BIO_get_data(bio)));
  const ssize_t sent = ::send(socket, bytes, static_cast<size_t>(size), MSG_NOSIGNAL);
  if (sent < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_write(bio);
  return static_cast<int>(sent);
}

int socket_read(BIO* bio, char* bytes, int size) {
  BIO_clear_retry_flags(bio);
  const auto socket = static_cast<int>(reinterpret_cast<intptr_t>(BIO_get_data(bio)));
  const ssize_t got = ::recv(socket, bytes, static_cast<size_t>(size), 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_read(bio);
  return static_cast<int>(got);
}

long socket_control(BIO*, int command, long, void*) {
  return command == BIO_CTRL_FLUSH ? 1 : 0;
}

const BIO_METHOD* socket_method() {
  static const BIO_METHOD* kMethod = [] {
    BIO_METHOD* method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "deepinfer socket");
    DI_CHECK(method != nullptr, "OpenSSL has no memory");
    BIO_meth_set_write(method, socket_write);
    BIO_meth_set_read(method, socket_read);
    BIO_meth_set_ctrl(method, socket_control);
    return method;
  }();
  return kMethod;
}

}  // namespace

Result<std::shared_ptr<const TlsContext>> TlsContext::load(const std::string& certificate,
                                                           const std::string& key) {
  if (certificate.empty() && key.empty()) return std::shared_ptr<const TlsContext>();
  if (certificate.empty() || key.empty())
    return make_error(ErrorCode::kConfig,
                      "server.{}: missing beside server.{}; expected both of them (HTTPS) or none (HTTP)",
                      certificate.empty() ? "ssl_certfile" : "ssl_keyfile",
                      certificate.empty() ? "ssl_keyfile" : "ssl_certfile");
  DI_TRY(check_readable("server.ssl_certfile", certificate));
  DI_TRY(check_readable("server.ssl_keyfile", key));
  warn_if_others_read("server.ssl_keyfile", key);
  ERR_clear_error();
  auto out = std::make_shared<TlsContext>();
  out->context_.reset(SSL_CTX_new(TLS_server_method()));
  SSL_CTX* context = out->context_.get();
  if (!context) return make_error(ErrorCode::kInternal, "OpenSSL gives no context: {}", openssl_reason());
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                SSL_MODE_RELEASE_BUFFERS);
  if (SSL_CTX_use_certificate_chain_file(context, certificate.c_str()) != 1)
    return make_error(ErrorCode::kConfig, "server.ssl_certfile: {} holds no certificate in PEM form ({})",
                      certificate, openssl_reason());
  DI_TRY(use_key(context, key));
  X509* leaf = SSL_CTX_get0_certificate(context);
  warn_about_dates(leaf, certificate);
  out->self_signed_ = X509_check_issued(leaf, leaf) == X509_V_OK;
  return std::shared_ptr<const TlsContext>(std::move(out));
}

TlsSession::TlsSession(const TlsContext& context, int socket) : ssl_(SSL_new(context.get())) {
  BIO* bio = ssl_ ? BIO_new(socket_method()) : nullptr;
  DI_CHECK(bio != nullptr, "OpenSSL has no memory for a session");
  BIO_set_data(bio, reinterpret_cast<void*>(static_cast<intptr_t>(socket)));
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl_.get(), bio, bio);
  SSL_set_accept_state(ssl_.get());
}

error_code TlsSession::error_of(int result) {
  const int kind = SSL_get_error(ssl_.get(), result);
  wants_write_ = kind == SSL_ERROR_WANT_WRITE;
  if (kind == SSL_ERROR_WANT_READ || kind == SSL_ERROR_WANT_WRITE) return asio::error::would_block;
  if (kind == SSL_ERROR_ZERO_RETURN) return asio::error::eof;
  was_plain_http_ = ERR_GET_REASON(ERR_peek_last_error()) == SSL_R_HTTP_REQUEST;
  broken_ = true;
  ERR_clear_error();
  return asio::error::connection_reset;
}

error_code TlsSession::handshake() {
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_.get());
  return result == 1 ? error_code() : error_of(result);
}

size_t TlsSession::read(std::span<char> bytes, error_code& error) {
  error = asio::error::connection_reset;
  if (broken_) return 0;
  ERR_clear_error();
  const int size = static_cast<int>(std::min<size_t>(bytes.size(), INT_MAX));
  const int got = SSL_read(ssl_.get(), bytes.data(), size);
  error = got > 0 ? error_code() : error_of(got);
  return got > 0 ? static_cast<size_t>(got) : 0;
}

size_t TlsSession::write(std::string_view bytes, error_code& error) {
  error = asio::error::connection_reset;
  if (broken_) return 0;
  ERR_clear_error();
  const int size = static_cast<int>(std::min<size_t>(bytes.size(), INT_MAX));
  const int sent = SSL_write(ssl_.get(), bytes.data(), size);
  error = sent > 0 ? error_code() : error_of(sent);
  return sent > 0 ? static_cast<size_t>(sent) : 0;
}

void TlsSession::close() {
  if (broken_ || !SSL_is_init_finished(ssl_.get())) return;
  ERR_clear_error();
  SSL_shutdown(ssl_.get());
  ERR_clear_error();
}

}  // namespace deepinfer::server
