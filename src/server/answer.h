// Runs a prepared request and answers it, whole or as a stream.
#pragma once

#include <boost/asio/awaitable.hpp>

#include "engine/llm.h"
#include "server/http.h"
#include "server/prepare.h"
#include "server/reply_format.h"

namespace deepinfer::server {

ReplyOptions reply_options(const Prepared& prepared, Form form, ReplyHead head);

// A client that leaves ends the generation at once. `ping`: a stream says so often that it lives.
boost::asio::awaitable<void> answer(HttpExchange& exchange, Llm& llm, const Prepared& prepared,
                                    ReplyFormat& format, std::chrono::milliseconds ping);

}  // namespace deepinfer::server
