#include "doctor/network.h"

#include <fmt/format.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <system_error>

#include "hub/reach.h"

namespace deepinfer::doctor {

namespace fs = std::filesystem;

namespace {

constexpr const char* kPort = "Port";

std::string line_of(const fs::path& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

bool all_digits(const std::string& text) {
  return !text.empty() && text.size() < 9 &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) { return c >= '0' && c <= '9'; });
}

// Of the sockets that listen on the port, as /proc/net/tcp gives it:
//   sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
std::string listening_inode(const fs::path& table, int port) {
  std::ifstream in(table);
  const std::string wanted = fmt::format(":{:04X}", port);
  for (std::string line; std::getline(in, line);) {
    std::istringstream fields(line);
    std::string slot, local, remote, state, queues, timer, retransmits, user, timeout, inode;
    if (fields >> slot >> local >> remote >> state >> queues >> timer >> retransmits >> user >> timeout >>
            inode &&
        local.ends_with(wanted) && state == "0A")
      return inode;
  }
  return "";
}

// Does this process have the socket open?
bool has_socket(const fs::path& process, const std::string& inode) {
  const std::string wanted = "socket:[" + inode + "]";
  std::error_code error;
  for (fs::directory_iterator it(process / "fd", error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (fs::read_symlink(it->path(), ignored) == wanted) return true;
  }
  return false;
}

struct Addresses {
  addrinfo* list = nullptr;
  ~Addresses() {
    if (list) freeaddrinfo(list);
  }
};

// 0, or the errno of listening there.
int try_to_listen(const addrinfo& address) {
  const int fd = ::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return errno;
  const int yes = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  const bool good = ::bind(fd, address.ai_addr, address.ai_addrlen) == 0 && ::listen(fd, 1) == 0;
  const int error = good ? 0 : errno;
  ::close(fd);
  return error;
}

Finding taken(int port, const std::optional<PortHolder>& holder) {
  if (holder && holder->name == "deepinfer")
    return ok(kPort, fmt::format("{} is a running deepinfer's (pid {})", port, holder->pid));
  const std::string who = !holder || holder->pid == 0
                              ? "another program (another user's, or in another container)"
                              : fmt::format("{} (pid {})", holder->name, holder->pid);
  return problem(kPort, fmt::format("{} is taken by {}: serve would end with exit code 5", port, who),
                 fmt::format("deepinfer serve --port {}, or find it with: ss -ltnp 'sport = :{}'",
                             port < 65535 ? port + 1 : port - 1, port));
}

}  // namespace

std::optional<PortHolder> port_holder(const fs::path& root, int port) {
  std::string inode = listening_inode(root / "proc/net/tcp", port);
  if (inode.empty()) inode = listening_inode(root / "proc/net/tcp6", port);
  if (inode.empty()) return {};
  std::error_code error;
  for (fs::directory_iterator it(root / "proc", error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (all_digits(name) && has_socket(it->path(), inode))
      return PortHolder{std::stoi(name), line_of(it->path() / "comm")};
  }
  return PortHolder{};
}

Finding check_port(const Config::Server& server, const std::optional<PortHolder>& holder) {
  if (!server.uds.empty()) return ok(kPort, "none: the server listens on " + server.uds);
  if (server.port == 0) return ok(kPort, "any that is free");
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  // A name may be asked of a server elsewhere: localhost and addresses are known here.
  if (server.host != "localhost") hints.ai_flags |= AI_NUMERICHOST;
  Addresses addresses;
  if (getaddrinfo(server.host.c_str(), std::to_string(server.port).c_str(), &hints, &addresses.list) != 0)
    return ok(kPort, fmt::format("{} of {}, a name that is looked up when the server starts", server.port,
                                 server.host));
  const int error = try_to_listen(*addresses.list);
  if (error == 0) return ok(kPort, fmt::format("{} of {} is free", server.port, server.host));
  if (error == EADDRINUSE) return taken(server.port, holder);
  const std::string why = std::generic_category().message(error);
  if (error == EACCES)
    return problem(kPort, fmt::format("{}: {}: ports below 1024 belong to root", server.port, why),
                   "deepinfer serve --port 8000, behind a proxy that has the port");
  return problem(kPort, fmt::format("cannot listen on port {} of {}: {}", server.port, server.host, why),
                 "ip address (lists this machine's addresses); deepinfer serve --host 127.0.0.1");
}

Finding check_exposure(const Config::Server& server) {
  const char* topic = "Access";
  const bool local = !server.uds.empty() || server.host == "localhost" || server.host == "::1" ||
                     server.host.starts_with("127.");
  if (local) return ok(topic, "this machine only");
  if (!server.api_key.empty() || !server.api_key_file.empty())
    return ok(topic, fmt::format("whoever reaches {} and has a key", server.host));
  return warning(
      topic,
      fmt::format("server.host {} without server.api_key: whoever reaches this address can use the "
                  "model",
                  server.host),
      "deepinfer serve --api-key-file FILE (see docs/SECURITY.md)");
}

Finding check_hub(const hub::Settings& settings) {
  const char* topic = "Hub";
  if (settings.offline)
    return warning(topic, "HF_HUB_OFFLINE is set: only models on this machine are used",
                   "unset HF_HUB_OFFLINE");
  const Result<int> status = hub::reach(settings);
  if (status && *status < 500) return ok(topic, fmt::format("{} answers", settings.endpoint));
  const std::string why = status ? fmt::format("status {}", *status) : status.error().message;
  return problem(topic, fmt::format("{} cannot be reached: {}", settings.endpoint, why),
                 "export HTTPS_PROXY=http://PROXY:PORT, or export HF_ENDPOINT=A_MIRROR (see docs/MODELS.md)");
}

}  // namespace deepinfer::doctor
