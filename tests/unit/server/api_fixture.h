// The whole server over loopback with a model that says what the test wants.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "fake_llm.h"
#include "raw_client.h"
#include "server/server.h"

namespace deepinfer::server {

class ApiTest : public testing::Test {
 protected:
  void TearDown() override {
    gate_.open();
    if (server_) server_->stop();
    llm_.reset();
    server_.reset();
  }

  void start_loading() {
    config_.server.port = 0;
    server_ = std::make_unique<Server>(config_, ping_);
    auto address = server_->start();
    ASSERT_TRUE(address.ok()) << address.error().message;
    port_ = static_cast<uint16_t>(std::stoi(address->url.substr(address->url.rfind(':') + 1)));
  }

  void start(FakeModel model = {}) {
    start_loading();
    llm_ = make_fake_llm(config_, std::move(model), &gate_);
    server_->set_model(*llm_);
  }

  RawReply ask(std::string_view bytes) {
    RawClient client(port_);
    client.send(bytes);
    return client.read_reply();
  }
  boost::json::value ask_json(std::string_view bytes, int status = 200) {
    const RawReply reply = ask(bytes);
    EXPECT_EQ(reply.status, status) << reply.body;
    return boost::json::parse(reply.body);
  }
  // The data of each event; comments are left out.
  static std::vector<std::string> events(const std::string& body) {
    std::vector<std::string> out;
    for (size_t at = 0, end; (end = body.find("\n\n", at)) != std::string::npos; at = end + 2)
      if (body.compare(at, 6, "data: ") == 0) out.push_back(body.substr(at + 6, end - at - 6));
    return out;
  }
  static std::string chat(std::string_view more = "", std::string_view content = "hi") {
    return post("/v1/chat/completions",
                fmt::format(R"({{"messages":[{{"role":"user","content":"{}"}}]{}{}}})", content,
                            more.empty() ? "" : ",", more));
  }
  static std::string complete(std::string_view fields) {
    return post("/v1/completions", fmt::format("{{{}}}", fields));
  }
  void expect_free() {
    for (int i = 0; i < 500 && llm_->engine->stats().free_blocks != llm_->engine->stats().total_blocks; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    EXPECT_EQ(llm_->engine->stats().free_blocks, llm_->engine->stats().total_blocks);
  }
  void expect_running(int wanted) {
    for (int i = 0; i < 500 && llm_->engine->stats().running != wanted; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    EXPECT_EQ(llm_->engine->stats().running, wanted);
  }

  Config config_;
  std::chrono::milliseconds ping_{15000};
  Gate gate_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Llm> llm_;
  uint16_t port_ = 0;
};

}  // namespace deepinfer::server
