// What `deepinfer serve` says when it is ready: what it chose, and a line to try it with.
#pragma once

#include <string>

#include "base/log_format.h"
#include "config/config.h"
#include "engine/llm.h"
#include "server/server.h"

namespace deepinfer {

// "gpu.max_num_seqs 8 (--max-num-seqs), ...": every setting that differs from the built-in value, secrets
// hidden; empty: none.
std::string chosen_settings(const LoadedConfig& loaded);

// For people, on standard output.
std::string banner(const Config& config, const std::string& settings, const Llm& llm,
                   const server::Address& address);
// The same for machines, as the fields of one line of the log.
LogFields banner_fields(const Config& config, const std::string& settings, const Llm& llm,
                        const server::Address& address);

}  // namespace deepinfer
