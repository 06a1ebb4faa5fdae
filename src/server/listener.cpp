#include "server/listener.h"

#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/check.h"

namespace deepinfer::server {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using Local = asio::local::stream_protocol;

namespace {

constexpr mode_t kSocketMode = 0660;

void close(Acceptor& acceptor) {
  error_code ignored;
  acceptor.close(ignored);
}

// Whether `path` may be bound: nothing is there, or a socket to which nobody listens, which goes.
Result<void> make_way(asio::any_io_executor executor, const std::string& path) {
  struct stat info{};
  if (lstat(path.c_str(), &info) != 0) return {};  // what else is wrong, bind() says
  if (!S_ISSOCK(info.st_mode))
    return make_error(ErrorCode::kConfig,
                      "server.uds: {} exists and is not a socket; expected a path that is free", path);
  Local::socket probe(executor);
  error_code error;
  probe.connect(Local::endpoint(path), error);
  if (!error)
    return make_error(ErrorCode::kAddressInUse,
                      "server.uds: another program listens on {}; stop that one, or choose another path",
                      path);
  if (error != asio::error::connection_refused)
    return make_error(ErrorCode::kConfig, "server.uds: cannot tell whether {} is in use ({})", path,
                      error.message());
  if (unlink(path.c_str()) != 0 && errno != ENOENT)
    return make_error(ErrorCode::kConfig, "server.uds: cannot replace the old socket {} ({})", path,
                      std::generic_category().message(errno));
  return {};
}

}  // namespace

Result<uint16_t> listen_tcp(Acceptor& acceptor, const std::string& host, int port) {
  const std::string where = fmt::format("{}:{}", host, port);
  error_code error;
  tcp::resolver resolver(acceptor.get_executor());
  const auto found = resolver.resolve(host, std::to_string(port),
                                      tcp::resolver::numeric_service | tcp::resolver::passive, error);
  if (error || found.empty())
    return make_error(
        ErrorCode::kConfig,
        "server.host: got \"{}\", which is not an address of this machine ({}); expected one such as "
        "127.0.0.1, or 0.0.0.0 for all",
        host, error.message());
  const tcp::endpoint endpoint = found.begin()->endpoint();
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (!error) {
    tcp::endpoint bound;
    const auto local = acceptor.local_endpoint();
    bound.resize(local.size());
    std::memcpy(bound.data(), local.data(), local.size());
    return bound.port();
  }
  close(acceptor);
  if (error == asio::error::address_in_use)
    return make_error(
        ErrorCode::kAddressInUse,
        "server.port: {} is in use by another program; stop that one, or choose another port with "
        "--port N (0: any free one)",
        where);
  if (error == asio::error::access_denied)
    return make_error(ErrorCode::kConfig,
                      "server.port: this user may not listen on {}; choose a port from 1024 on with --port N",
                      where);
  return make_error(
      ErrorCode::kConfig,
      "server.host: cannot listen on {} ({}); expected an address of this machine such as 127.0.0.1, "
      "or 0.0.0.0 for all",
      where, error.message());
}

SocketFile::SocketFile(std::string path) : path_(std::move(path)) {
  struct stat info{};
  if (lstat(path_.c_str(), &info) != 0) path_.clear();
  device_ = info.st_dev;
  inode_ = info.st_ino;
}

SocketFile& SocketFile::operator=(SocketFile&& other) noexcept {
  if (this == &other) return *this;
  remove();
  path_ = std::exchange(other.path_, {});
  device_ = other.device_;
  inode_ = other.inode_;
  return *this;
}

void SocketFile::remove() {
  const std::string path = std::exchange(path_, {});
  struct stat info{};
  if (path.empty() || lstat(path.c_str(), &info) != 0) return;
  if (info.st_dev == device_ && info.st_ino == inode_) unlink(path.c_str());
}

Result<SocketFile> listen_unix(Acceptor& acceptor, const std::string& path) {
  constexpr size_t kLongest = sizeof(sockaddr_un::sun_path) - 1;
  if (path.size() > kLongest || path.find('\0') != std::string::npos)
    return make_error(ErrorCode::kConfig,
                      "server.uds: got a path of {} bytes, expected at most {} without a zero byte: {}",
                      path.size(), kLongest, path.substr(0, 200));
  DI_TRY(make_way(acceptor.get_executor(), path));
  error_code error;
  acceptor.open(Local(), error);
  // Linux makes the file with the socket's own mode, so it is never open to more; the umask only takes away.
  if (!error) fchmod(acceptor.native_handle(), kSocketMode);
  if (!error) acceptor.bind(Local::endpoint(path), error);
  SocketFile file;
  if (!error) {
    file = SocketFile(std::filesystem::absolute(path).string());
    if (chmod(path.c_str(), kSocketMode) != 0) error.assign(errno, boost::system::system_category());
  }
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (!error) return file;
  close(acceptor);
  if (error == asio::error::address_in_use)
    return make_error(ErrorCode::kAddressInUse, "server.uds: {} was taken by another program just now", path);
  return make_error(
      ErrorCode::kConfig,
      "server.uds: cannot listen on {} ({}); expected a path in a folder that this user may write", path,
      error.message());
}

}  // namespace deepinfer::server
