#include "comm/gloo_context.h"

#include <gloo/transport/tcp/address.h>
#include <gloo/transport/tcp/device.h>
#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <string>
#include <vector>

#include "base/check.h"

namespace deepinfer::comm {
namespace {

using Context = std::shared_ptr<::gloo::transport::Context>;

Result<void> write_to(Mesh& mesh, int rank, std::string_view text, Deadline deadline) {
  if (auto sent = mesh.links[rank].write(text, deadline); !sent)
    return make_error(sent.error().code, "Gloo: rank {}: {}", rank, sent.error().message);
  return {};
}

Result<std::string> read_from(Mesh& mesh, int rank, Deadline deadline) {
  auto text = mesh.links[rank].read(deadline);
  if (!text) return make_error(text.error().code, "Gloo: rank {}: {}", rank, text.error().message);
  return text;
}

Result<Endpoint> endpoint_of(const ::gloo::transport::Address& address) {
  const ::gloo::transport::tcp::Address tcp(address.bytes());
  const sockaddr_storage& s = tcp.getSockaddr();
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (getnameinfo(reinterpret_cast<const sockaddr*>(&s), sizeof s, host, sizeof host, port, sizeof port,
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return make_error(ErrorCode::kUnavailable, "Gloo: an address that is neither IPv4 nor IPv6");
  return Endpoint{host, static_cast<uint16_t>(std::stoi(port))};
}

// Gloo keeps its sockets to itself, so this looks at those of the process: where the ones at `local` lead.
std::vector<std::string> other_ends(const Endpoint& local) {
  std::vector<std::string> ends;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", ignored)) {
    const std::string name = entry.path().filename();
    int fd = -1;
    std::from_chars(name.data(), name.data() + name.size(), fd);
    const auto own = local_endpoint(fd);
    if (!own || !(*own == local)) continue;
    if (auto remote = remote_endpoint(fd)) ends.push_back(remote->text());
  }
  return ends;
}

// Each end of a connection tells the other over the mesh where it is, and looks for a socket of its own that
// leads there. Gloo accepts one connection at an address: if it was a stranger's, there is no such socket.
Result<void> verify(Mesh& mesh, const Context& context, Deadline deadline) {
  std::vector<Endpoint> mine(mesh.size);
  for (int r = 0; r < mesh.size; ++r) {
    if (r == mesh.rank) continue;
    DI_ASSIGN(mine[r], endpoint_of(context->getPair(r)->address()));
    DI_TRY(write_to(mesh, r, mine[r].text(), deadline));
  }
  for (int r = 0; r < mesh.size; ++r) {
    if (r == mesh.rank) continue;
    DI_ASSIGN(const std::string theirs, read_from(mesh, r, deadline));
    const std::vector<std::string> ends = other_ends(mine[r]);
    if (std::ranges::find(ends, theirs) == ends.end())
      return make_error(
          ErrorCode::kUnavailable,
          "Gloo: the connection to rank {} leads from {} to {}, but that rank is at {}: somebody "
          "else connected, or addresses are translated on the way",
          r, mine[r].text(), ends.empty() ? "nothing" : ends.front(), theirs);
  }
  return {};
}

}  // namespace

Result<Context> connect_gloo(Mesh& mesh, std::chrono::milliseconds timeout) {
  const Deadline deadline = std::chrono::steady_clock::now() + timeout;
  if (mesh.size < 2) return make_error(ErrorCode::kConfig, "Gloo: a group of {} ranks", mesh.size);
  DI_ASSIGN(const Endpoint own, local_endpoint(mesh.links[mesh.rank == 0 ? 1 : 0].fd()));
  try {
    ::gloo::transport::tcp::attr attributes(own.host.c_str());
    const auto device = ::gloo::transport::tcp::CreateDevice(attributes);
    Context context = device->createContext(mesh.rank, mesh.size);
    context->setTimeout(timeout);
    for (int r = 0; r < mesh.size; ++r) {
      if (r == mesh.rank) continue;
      const std::vector<char> bytes = context->createPair(r)->address().bytes();
      DI_TRY(write_to(mesh, r, std::string_view(bytes.data(), bytes.size()), deadline));
    }
    std::vector<std::string> addresses(mesh.size);
    for (int r = 0; r < mesh.size; ++r) {
      if (r == mesh.rank) continue;
      DI_ASSIGN(addresses[r], read_from(mesh, r, deadline));
      if (addresses[r].size() != context->getPair(r)->address().bytes().size())
        return make_error(ErrorCode::kConfig, "Gloo: rank {} has another version of it", r);
    }
    for (int r = 0; r < mesh.size; ++r)
      if (r != mesh.rank) context->getPair(r)->connect({addresses[r].begin(), addresses[r].end()});
    DI_TRY(verify(mesh, context, deadline));
    return context;
  } catch (const std::exception& e) {
    return make_error(ErrorCode::kUnavailable, "Gloo: connecting the ranks: {}", e.what());
  }
}

}  // namespace deepinfer::comm
