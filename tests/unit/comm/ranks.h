// Groups of ranks for tests, one thread a rank, in every form that a communicator has.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "comm/gloo.h"
#include "comm/local.h"

namespace deepinfer::test {

constexpr auto kLong = std::chrono::seconds(60);  // never reached by a test that passes

using Ranks = std::vector<std::unique_ptr<Communicator>>;
using MakeRanks = std::function<Ranks(int ranks, std::chrono::milliseconds timeout)>;

// Over the loopback interface. Fails the test and returns nothing when they do not find each other.
inline Ranks gloo_ranks(int ranks, std::chrono::milliseconds timeout) {
  std::promise<uint16_t> port;
  std::shared_future<uint16_t> known = port.get_future().share();
  Ranks all(ranks);
  std::vector<std::string> errors(ranks);
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      RendezvousOptions o;
      o.rank = r;
      o.size = ranks;
      o.token = "a token for tests only";
      if (r == 0) {
        o.on_listening = [&](uint16_t p) { port.set_value(p); };
      } else {
        o.port = known.get();
      }
      auto mesh = meet(o);
      if (!mesh) {
        errors[r] = mesh.error().message;
        return;
      }
      auto made = gloo_communicator(std::move(*mesh), timeout);
      if (!made) {
        errors[r] = made.error().message;
        return;
      }
      all[r] = std::move(*made);
    });
  }
  for (std::thread& t : threads) t.join();
  for (const std::string& e : errors) EXPECT_EQ(e, "");
  return all;
}

// What each rank's work threw; empty: nothing. A rank is destroyed when its work ends.
inline std::vector<std::string> run(const MakeRanks& make, int ranks,
                                    const std::function<void(Communicator&)>& work,
                                    std::chrono::milliseconds timeout = kLong) {
  Ranks all = make(ranks, timeout);
  std::vector<std::string> errors(ranks);
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      const std::unique_ptr<Communicator> mine = std::move(all[r]);
      if (!mine) {
        errors[r] = "no communicator";
        return;
      }
      try {
        work(*mine);
      } catch (const CommError& e) {
        EXPECT_EQ(e.rank(), r);
        errors[r] = e.what();
      }
    });
  }
  for (std::thread& t : threads) t.join();
  return errors;
}

// Cheap, for sanitizers make every step of a real generator dear.
inline std::vector<std::byte> bytes_of(int rank, size_t n, int seed) {
  std::vector<std::byte> b(n);
  uint32_t x = static_cast<uint32_t>(1000 * seed + rank + 1);
  for (std::byte& v : b) v = static_cast<std::byte>((x = x * 1664525 + 1013904223) >> 24);
  return b;
}

}  // namespace deepinfer::test
