// Exit codes of the program, for scripts and service managers.
#pragma once

#include "deepinfer/result.h"

namespace deepinfer {

// 0 clean, 2 usage or configuration, 3 model, 4 device or memory, 5 address in use, 6 drain expired, 1
// anything else.
int exit_code(ErrorCode code);

// Prints the message on standard error; returns the exit code.
int report(const Error& error);

}  // namespace deepinfer
