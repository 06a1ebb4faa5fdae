// Where the server listens: an address and port, or a Unix socket.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <cstdint>
#include <string>

#include "deepinfer/result.h"

namespace deepinfer::server {

using Acceptor = boost::asio::basic_socket_acceptor<boost::asio::generic::stream_protocol>;

// Binds and listens. kAddressInUse or kConfig with what to do.
Result<uint16_t> listen_tcp(Acceptor& acceptor, const std::string& host, int port);  // the port bound

// A file that this process made for its Unix socket. remove() unlinks it once, and only as long as it is
// still the same file: another server may have replaced it.
class SocketFile {
 public:
  SocketFile() = default;
  explicit SocketFile(std::string path);
  ~SocketFile() { remove(); }
  SocketFile(SocketFile&& other) noexcept { *this = std::move(other); }
  SocketFile& operator=(SocketFile&& other) noexcept;
  void remove();

 private:
  std::string path_;  // absolute; empty: none
  uint64_t device_ = 0, inode_ = 0;
};

// The file gets mode 0660. One that is there is replaced when it is a socket to which nobody listens.
Result<SocketFile> listen_unix(Acceptor& acceptor, const std::string& path);

}  // namespace deepinfer::server
