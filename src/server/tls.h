// HTTPS: a certificate and its key from files, and the TLS session of one connection.
#pragma once

#include <openssl/ssl.h>

#include <boost/system/error_code.hpp>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "deepinfer/result.h"

namespace deepinfer::server {

// Immutable once loaded: sessions of any thread share it.
class TlsContext {
 public:
  // Both paths empty: null, plain HTTP. kConfig with the file and the reason when one is missing, cannot be
  // read, is not PEM, needs a password or when the key is not the certificate's. TLS 1.2 and newer.
  static Result<std::shared_ptr<const TlsContext>> load(const std::string& certificate,
                                                        const std::string& key);

  SSL_CTX* get() const { return context_.get(); }
  bool self_signed() const { return self_signed_; }  // a client must be given the certificate to trust it

 private:
  struct Free {
    void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  };
  std::unique_ptr<SSL_CTX, Free> context_;
  bool self_signed_ = false;
};

// One session over a socket that does not block. Borrows the socket; one thread at a time. Each call does
// what can be done now and returns; would_block: wait until the socket is ready for what wants() says.
class TlsSession {
 public:
  TlsSession(const TlsContext& context, int socket);

  boost::system::error_code handshake();
  size_t read(std::span<char> bytes, boost::system::error_code& error);
  size_t write(std::string_view bytes, boost::system::error_code& error);
  void close();  // says that nothing more comes

  bool wants_write() const { return wants_write_; }        // else to read
  bool was_plain_http() const { return was_plain_http_; }  // why the handshake failed

 private:
  boost::system::error_code error_of(int result);

  struct Free {
    void operator()(SSL* ssl) const { SSL_free(ssl); }
  };
  std::unique_ptr<SSL, Free> ssl_;
  bool wants_write_ = false;
  bool was_plain_http_ = false;
  bool broken_ = false;  // after a fault OpenSSL must not be called again
};

}  // namespace deepinfer::server
