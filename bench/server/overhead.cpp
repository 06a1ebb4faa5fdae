// The server's own cost: streams whose model is a table, so that all processor time is that of HTTP, JSON,
// text, scheduler and threads.
//
//   overhead [STREAMS [TOKENS [STEP_MICROSECONDS]]]   (512, 200, 5000)
//
// A child process is the client of all streams at once; the parent serves and prints its own user and system
// time for each token that the child received.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "fake_llm.h"
#include "server/server.h"

using namespace deepinfer;
using namespace deepinfer::server;

namespace {

int connect_to(uint16_t port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  DI_CHECK(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0, "cannot connect");
  return fd;
}

// Returns 0 when every stream ended as it should.
int run_client(uint16_t port, int streams, int tokens) {
  const std::string body =
      fmt::format(R"({{"prompt":"a","max_tokens":{},"ignore_eos":true,"stream":true}})", tokens);
  const std::string request = fmt::format(
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{}",
      body.size(), body);
  std::vector<pollfd> open;
  std::vector<std::string> ends(streams);
  for (int i = 0; i < streams; ++i) {
    open.push_back({connect_to(port), POLLIN, 0});
    DI_CHECK(write(open.back().fd, request.data(), request.size()) == static_cast<ssize_t>(request.size()),
             "cannot send");
  }
  int left = streams;
  char bytes[65536];
  while (left > 0) {
    poll(open.data(), open.size(), -1);
    for (int i = 0; i < streams; ++i) {
      if (open[i].fd < 0 || open[i].revents == 0) continue;
      const ssize_t got = read(open[i].fd, bytes, sizeof bytes);
      if (got > 0) {
        ends[i].append(bytes, got);
        if (ends[i].size() > 64) ends[i].erase(0, ends[i].size() - 64);
        continue;
      }
      close(open[i].fd);
      open[i].fd = -1;
      --left;
    }
  }
  int failed = 0;
  for (const std::string& end : ends) failed += end.find("[DONE]") == std::string::npos;
  if (failed > 0) fmt::print(stderr, "{} of {} streams did not end\n", failed, streams);
  return failed > 0 ? 1 : 0;
}

double seconds(const timeval& t) {
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
}

}  // namespace

int main(int argc, char** argv) {
  const int streams = argc > 1 ? std::atoi(argv[1]) : 512;
  const int tokens = argc > 2 ? std::atoi(argv[2]) : 200;
  const int step = argc > 3 ? std::atoi(argv[3]) : 5000;
  if (streams < 1 || tokens < 1 || step < 0) {
    fmt::print(stderr, "overhead: expected STREAMS, TOKENS and STEP_MICROSECONDS\n");
    return 2;
  }
  int start[2], port_pipe[2];
  if (pipe(start) != 0 || pipe(port_pipe) != 0) return 1;
  const pid_t child = fork();  // before there are threads
  if (child == 0) {
    uint16_t port = 0;
    if (read(port_pipe[0], &port, sizeof port) != sizeof port) return 1;
    return run_client(port, streams, tokens);
  }
  set_log_level("error");
  Config config;
  config.server.port = 0;
  FakeModel model;
  model.says.assign(static_cast<size_t>(tokens) + 1, 'x');
  model.step_time = std::chrono::microseconds(step);
  model.max_model_len = tokens + 64;
  model.num_blocks = streams * (tokens / 16 + 4);
  model.max_num_seqs = model.max_queue = streams;
  const auto llm = make_fake_llm(config, model);
  Server server(config);
  const auto url = server.start();
  if (!url) {
    fmt::print(stderr, "{}\n", url.error().message);
    return 1;
  }
  server.set_model(*llm);
  const auto port = static_cast<uint16_t>(std::atoi(url->url.substr(url->url.rfind(':') + 1).c_str()));
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  if (write(port_pipe[1], &port, sizeof port) != sizeof port) return 1;
  int status = 0;
  waitpid(child, &status, 0);
  getrusage(RUSAGE_SELF, &after);
  const EngineStats stats = llm->engine->stats();
  const double user = seconds(after.ru_utime) - seconds(before.ru_utime);
  const double system = seconds(after.ru_stime) - seconds(before.ru_stime);
  const double count = static_cast<double>(stats.generated_tokens);
  fmt::print(
      "{} streams of {} tokens, {} steps: {:.2f} us a token ({:.2f} user, {:.2f} system), {:.0f} tokens a "
      "step\n",
      streams, tokens, stats.steps, (user + system) / count * 1e6, user / count * 1e6, system / count * 1e6,
      count / static_cast<double>(stats.steps));
  server.drain(std::chrono::seconds(5));
  server.stop();
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
