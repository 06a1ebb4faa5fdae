#include "server/mailbox.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

namespace deepinfer::server {

namespace asio = boost::asio;

void Mailbox::push(EngineNews news) {
  {
    const std::lock_guard lock(mutex_);
    news_.push_back(std::move(news));
    if (std::exchange(signalled_, true)) return;
  }
  asio::post(timer_.get_executor(), [self = shared_from_this()] { self->timer_.cancel(); });
}

std::vector<EngineNews> Mailbox::take() {
  const std::lock_guard lock(mutex_);
  signalled_ = false;
  return std::exchange(news_, {});
}

void Mailbox::wake() {
  woken_ = true;
  timer_.cancel();
}

asio::awaitable<bool> Mailbox::wait(std::optional<std::chrono::milliseconds> time) {
  const auto ready = [this] {
    const std::lock_guard lock(mutex_);
    return woken_ || !news_.empty();
  };
  if (time)
    timer_.expires_after(*time);
  else
    timer_.expires_at(asio::steady_timer::time_point::max());
  // A wake-up for news that take() has seen already may still be on its way: it wakes for nothing.
  while (!ready()) {
    const auto [error] = co_await timer_.async_wait(asio::as_tuple(asio::use_awaitable));
    if (!error && !ready()) co_return false;
  }
  woken_ = false;
  co_return true;
}

}  // namespace deepinfer::server
